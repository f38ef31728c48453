// What Spegel does for a manifest, with a real containerd behind it: two Content.Info calls over gRPC per request,
// metrics, and the file by sendfile.  It puts the one manifest that is asked for into containerd when it starts.
//
// Built with containerd's own Go client of Debian's packages, in GOPATH mode, because nothing is downloaded here.
package main

import (
	"bytes"
	"context"
	"flag"
	"io"
	"log"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd"
	"github.com/containerd/containerd/content"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
)

const (
	infosPerRequest = 2
	mediaType       = "application/vnd.oci.image.manifest.v1+json"
)

type response struct {
	http.ResponseWriter
	status int
	size   int64
}

func (r *response) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

func (r *response) ReadFrom(from io.Reader) (int64, error) {
	n, err := io.Copy(r.ResponseWriter, from)
	r.size += n
	return n, err
}

type server struct {
	store    content.Store
	blobs    string
	duration *prometheus.HistogramVec
	size     *prometheus.HistogramVec
	inflight *prometheus.GaugeVec
}

func (s *server) serve(w http.ResponseWriter, req *http.Request) {
	start := time.Now()
	rw := &response{ResponseWriter: w}
	s.inflight.WithLabelValues("/v2/*").Add(1)
	defer func() {
		status := strconv.Itoa(rw.status)
		s.inflight.WithLabelValues("/v2/*").Add(-1)
		s.duration.WithLabelValues("/v2/*", req.Method, status).Observe(time.Since(start).Seconds())
		s.size.WithLabelValues("/v2/*", req.Method, status).Observe(float64(rw.size))
	}()
	if path.Clean(req.URL.Path) == "/v2" {
		rw.WriteHeader(http.StatusOK)
		return
	}
	dgst, err := digest.Parse(path.Base(req.URL.Path))
	if err != nil {
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	var info content.Info
	for i := 0; i < infosPerRequest; i++ {
		if info, err = s.store.Info(req.Context(), dgst); err != nil {
			rw.WriteHeader(http.StatusNotFound)
			return
		}
	}
	h := rw.Header()
	h.Set("Content-Type", mediaType)
	h.Set("Docker-Content-Digest", dgst.String())
	h.Set("OCI-Namespace", "docker.io")
	h.Set("Content-Length", strconv.FormatInt(info.Size, 10))
	if req.Method == http.MethodHead {
		rw.WriteHeader(http.StatusOK)
		return
	}
	f, err := os.Open(filepath.Join(s.blobs, dgst.Algorithm().String(), dgst.Encoded()))
	if err != nil {
		rw.WriteHeader(http.StatusNotFound)
		return
	}
	defer f.Close()
	rw.WriteHeader(http.StatusOK)
	io.Copy(rw, f)
}

// put writes the manifest into containerd's store, marked so that it is not collected.
func put(client *containerd.Client, file string) error {
	body, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(body), Size: int64(len(body))}
	root := content.WithLabels(map[string]string{"containerd.io/gc.root": time.Now().UTC().Format(time.RFC3339)})
	return content.WriteBlob(context.Background(), client.ContentStore(), "bench", bytes.NewReader(body), desc, root)
}

func main() {
	address := flag.String("address", "127.0.0.1:9000", "where to listen")
	home := flag.String("home", "", "containerd's directory: c.sock and root")
	manifest := flag.String("manifest", "", "file with the manifest to serve")
	flag.Parse()
	client, err := containerd.New(filepath.Join(*home, "c.sock"), containerd.WithDefaultNamespace("k8s.io"),
		containerd.WithTimeout(20*time.Second))
	if err != nil {
		log.Fatal(err)
	}
	if err := put(client, *manifest); err != nil {
		log.Fatal(err)
	}
	labels := []string{"handler", "method", "code"}
	s := &server{
		store: client.ContentStore(),
		blobs: filepath.Join(*home, "root/io.containerd.content.v1.content/blobs"),
		duration: prometheus.NewHistogramVec(
			prometheus.HistogramOpts{Name: "http_request_duration_seconds"}, labels),
		size: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "http_response_size_bytes", Buckets: prometheus.ExponentialBuckets(100, 10, 8)}, labels),
		inflight: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "http_requests_inflight"}, []string{"handler"}),
	}
	prometheus.MustRegister(s.duration, s.size, s.inflight)
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", s.serve)
	log.Fatal(http.ListenAndServe(*address, mux))
}
