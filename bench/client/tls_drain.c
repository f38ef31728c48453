/* A client that asks over TLS, one request after the other on one connection, and throws the bodies away.
 *
 *   tls_drain PORT SECONDS TARGET SIZE drop|decrypt
 *
 * "drop" takes a connection for each answer, and the kernel drops the encrypted body without a copy (MSG_TRUNC), so
 * that the server limits the transfer; the bytes are then those of the records, up to the size of the body.  The
 * request is that of a runtime, which keeps the connection; the client hangs up.  "decrypt" keeps the connection, as
 * small answers need, because a handshake costs as much as they do.
 *
 * All servers get the same cipher, because this client offers no other.  Prints one JSON object.  Exit status 2: no
 * connection; 3: an answer is cut. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_LATENCIES = 1 << 20, HEAD_ROOM = 8192 };

static char buffer[1 << 18];
static double latencies[MAX_LATENCIES];

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static double cpu(void) {
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return u.ru_utime.tv_sec + u.ru_stime.tv_sec + (u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static SSL *dial(SSL_CTX *context, int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval within = {20, 0};
    int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &within, sizeof within);
    if (connect(fd, (void *)&to, sizeof to)) { perror("connect"); exit(2); }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    SSL *tls = SSL_new(context);
    SSL_set_fd(tls, fd);
    if (SSL_connect(tls) != 1) { ERR_print_errors_fp(stderr); exit(2); }
    return tls;
}

static void hang_up(SSL *tls) {
    int fd = SSL_get_fd(tls);
    SSL_free(tls);
    close(fd);
}

/* The bytes of the encrypted answer. */
static long drop(SSL *tls, long size) {
    long n, got = 0;
    while (got < size && (n = recv(SSL_get_fd(tls), buffer, 1 << 24, MSG_TRUNC)) > 0) got += n;
    return got;
}

/* The bytes of the body; *status is the answer's. */
static long decrypt(SSL *tls, int *status) {
    long have = 0;
    char *end = NULL;
    while (!end) {
        int n = SSL_read(tls, buffer + have, HEAD_ROOM - 1 - have);
        if (n <= 0) { fprintf(stderr, "the connection was cut in a head\n"); exit(3); }
        buffer[have += n] = 0;
        end = strstr(buffer, "\r\n\r\n");
    }
    *status = atoi(buffer + 9);
    *end = 0;
    char *length = strcasestr(buffer, "\ncontent-length:");
    long size = length ? atol(length + 16) : 0, rest = size - (have - (end + 4 - buffer));
    while (rest > 0) {
        int n = SSL_read(tls, buffer, rest < (long)sizeof buffer ? rest : (long)sizeof buffer);
        if (n <= 0) { fprintf(stderr, "the connection was cut in a body\n"); exit(3); }
        rest -= n;
    }
    return size;
}

int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "usage: tls_drain PORT SECONDS TARGET SIZE drop|decrypt\n"); return 64; }
    int port = atoi(argv[1]), dropping = !strcmp(argv[5], "drop");
    double seconds = atof(argv[2]);
    long size = atol(argv[4]), requests = 0, bytes = 0, errors = 0, bad_status = 0;
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
    SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256");
    /* few system calls, because this client must not be what limits a transfer */
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_default_read_buffer_len(context, sizeof buffer);
    char request[1024];
    int length = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUser-Agent: containerd/2.1.0\r\n\r\n", argv[3], port);
    char cipher[64] = "";
    SSL *tls = NULL;
    double began = now(), elapsed;
    do {
        double asked = now();
        if (!tls) {
            tls = dial(context, port);
            snprintf(cipher, sizeof cipher, "%s %s", SSL_get_version(tls), SSL_get_cipher(tls));
        }
        if (SSL_write(tls, request, length) != length) { fprintf(stderr, "the request was not taken\n"); return 3; }
        int status = 200;
        long got = dropping ? drop(tls, size) : decrypt(tls, &status);
        if (status != 200) bad_status++;
        if (got < size) errors++;
        bytes += got;
        if (requests < MAX_LATENCIES) latencies[requests] = now() - asked;
        requests++;
        if (dropping) { hang_up(tls); tls = NULL; }
        elapsed = now() - began;
    } while (elapsed < seconds);
    long counted = requests < MAX_LATENCIES ? requests : MAX_LATENCIES;
    qsort(latencies, counted, sizeof *latencies, ascending);
    printf("{\"seconds\":%.4f,\"requests\":%ld,\"bytes\":%ld,\"p50_us\":%.1f,\"p99_us\":%.1f,\"errors\":%ld,"
           "\"bad_status\":%ld,\"client_cpu\":%.4f,\"cipher\":\"%s\"}\n",
           elapsed, requests, bytes, latencies[counted / 2] * 1e6, latencies[(long)(counted * 0.99)] * 1e6, errors,
           bad_status, cpu(), cipher);
    return 0;
}
