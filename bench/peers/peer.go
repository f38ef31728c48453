// What the sidecar is measured against: Go's standard library in the shape of Spegel's handlers.
//
//	-mode serve   blobHandler and manifestHandler: mux, response wrapper with ReadFrom, os.Open, io.Copy (sendfile)
//	-mode proxy   mirrorHandler: http.Client asks -upstream, io.CopyBuffer with 32 KiB from a pool
//	-verify       what passes in proxy mode is hashed, and an answer whose digest is wrong is not completed
//	-cert, -key   what is served is encrypted
//	-ca           whose certificates the upstream may have
//
// Not Spegel itself: no gRPC calls to containerd, no metrics, no lookup of peers, so it does less per request.
package main

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// response keeps status and size as Spegel's does, and passes ReadFrom on, without which there is no sendfile.
type response struct {
	http.ResponseWriter
	status int
	size   int64
}

func (r *response) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) Write(b []byte) (int, error) {
	n, err := r.ResponseWriter.Write(b)
	r.size += int64(n)
	return n, err
}

func (r *response) ReadFrom(from io.Reader) (int64, error) {
	n, err := io.Copy(r.ResponseWriter, from)
	r.size += n
	return n, err
}

func parse(p string) (kind, digest string, ok bool) {
	p = strings.TrimPrefix(p, "/v2/")
	for _, kind := range []string{"blobs", "manifests"} {
		if i := strings.LastIndex(p, "/"+kind+"/sha256:"); i > 0 {
			return kind, p[i+len(kind)+len("//sha256:"):], true
		}
	}
	return "", "", false
}

// first returns N of "bytes=N-", the only form that containerd sends, or 0.
func first(header string, size int64) int64 {
	n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(header, "bytes="), "-"), 10, 64)
	if err != nil || n < 0 || n >= size {
		return 0
	}
	return n
}

type server struct {
	blobs    string
	upstream string
	client   *http.Client
	buffers  sync.Pool
	verify   bool
}

func (s *server) serve(rw *response, req *http.Request) {
	kind, digest, ok := parse(req.URL.Path)
	if !ok {
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	f, err := os.Open(filepath.Join(s.blobs, filepath.Base(digest)))
	if err != nil {
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	defer f.Close()
	stat, err := f.Stat()
	if err != nil {
		rw.WriteHeader(http.StatusInternalServerError)
		return
	}
	h := rw.Header()
	h.Set("Docker-Content-Digest", "sha256:"+digest)
	h.Set("OCI-Namespace", "docker.io")
	if kind == "blobs" {
		h.Set("Accept-Ranges", "bytes")
		h.Set("Content-Type", "application/octet-stream")
	} else {
		h.Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
	}
	status, offset := http.StatusOK, int64(0)
	if value := req.Header.Get("Range"); value != "" && kind == "blobs" {
		offset = first(value, stat.Size())
		if _, err := f.Seek(offset, io.SeekStart); err != nil {
			rw.WriteHeader(http.StatusInternalServerError)
			return
		}
		h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", offset, stat.Size()-1, stat.Size()))
		status = http.StatusPartialContent
	}
	h.Set("Content-Length", strconv.FormatInt(stat.Size()-offset, 10))
	rw.WriteHeader(status)
	if req.Method != http.MethodHead {
		io.Copy(rw, f)
	}
}

func (s *server) proxy(rw *response, req *http.Request) {
	forward, err := http.NewRequestWithContext(req.Context(), req.Method, s.upstream+req.URL.RequestURI(), nil)
	if err != nil {
		rw.WriteHeader(http.StatusInternalServerError)
		return
	}
	forward.Header.Set("X-Spegel-Mirrored", "true")
	forward.Header.Set("User-Agent", "spegel")
	forward.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	answer, err := s.client.Do(forward)
	if err != nil {
		rw.WriteHeader(http.StatusBadGateway)
		return
	}
	defer answer.Body.Close()
	h := rw.Header()
	for _, name := range []string{"Content-Type", "Content-Length", "Docker-Content-Digest"} {
		if value := answer.Header.Get(name); value != "" {
			h.Set(name, value)
		}
	}
	h.Set("Accept-Ranges", "bytes")
	rw.WriteHeader(answer.StatusCode)
	if req.Method == http.MethodHead {
		return
	}
	buffer := s.buffers.Get().(*[]byte)
	defer s.buffers.Put(buffer)
	if !s.verify {
		io.CopyBuffer(rw, answer.Body, *buffer)
		return
	}
	hash := sha256.New()
	held := 0
	for {
		n, err := io.ReadFull(answer.Body, (*buffer)[:])
		hash.Write((*buffer)[:n])
		if err != nil {
			held = n
			break
		}
		if _, err := rw.Write((*buffer)[:n]); err != nil {
			return
		}
	}
	if _, digest, _ := parse(req.URL.Path); hex.EncodeToString(hash.Sum(nil)) != digest {
		panic(http.ErrAbortHandler)
	}
	rw.Write((*buffer)[:held])
}

func main() {
	mode := flag.String("mode", "serve", "serve or proxy")
	address := flag.String("address", "127.0.0.1:9000", "where to listen")
	blobs := flag.String("blobs", "", "directory with one file per digest")
	upstream := flag.String("upstream", "", "http://host:port to proxy to")
	verify := flag.Bool("verify", false, "check the digest of what passes")
	cert := flag.String("cert", "", "certificate, for TLS")
	key := flag.String("key", "", "its key")
	ca := flag.String("ca", "", "authority of the upstream's certificate")
	flag.Parse()
	authorities := x509.NewCertPool()
	if *ca != "" {
		pem, err := os.ReadFile(*ca)
		if err != nil || !authorities.AppendCertsFromPEM(pem) {
			log.Fatalf("%s holds no certificate: %v", *ca, err)
		}
	}
	s := &server{
		verify:   *verify,
		blobs:    *blobs,
		upstream: *upstream,
		buffers:  sync.Pool{New: func() any { b := make([]byte, 32*1024); return &b }},
		client: &http.Client{Transport: &http.Transport{
			DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			MaxIdleConns:        100,
			MaxConnsPerHost:     100,
			MaxIdleConnsPerHost: 100,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true,
			TLSClientConfig:     &tls.Config{RootCAs: authorities},
		}},
	}
	handle := s.serve
	if *mode == "proxy" {
		handle = s.proxy
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, req *http.Request) {
		rw := &response{ResponseWriter: w}
		if path.Clean(req.URL.Path) == "/v2" {
			rw.WriteHeader(http.StatusOK)
			return
		}
		handle(rw, req)
	})
	// HTTP/1.1 over TLS too, as all others here
	noHTTP2 := map[string]func(*http.Server, *tls.Conn, http.Handler){}
	listening := &http.Server{Addr: *address, Handler: mux, TLSNextProto: noHTTP2}
	if *cert != "" {
		log.Fatal(listening.ListenAndServeTLS(*cert, *key))
	}
	log.Fatal(listening.ListenAndServe())
}
