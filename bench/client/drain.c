/* A client that asks as fast as it is answered and throws the bodies away.
 *
 * It must never be what limits a transfer, or all servers look alike: one thread, epoll, connections that are kept,
 * and bodies taken with MSG_TRUNC, which lets TCP drop the bytes in the kernel without copying them.
 *
 *   drain PORT CONNECTIONS SECONDS METHOD TARGET [REQUESTS [STEP SIZE]]
 *
 * Ends after SECONDS, or after REQUESTS answers if that is not 0.  With STEP, each request asks for
 * "Range: bytes=N-" with the next multiple of STEP below SIZE, reads STEP bytes and drops the connection: that is how
 * containerd 2.1 and later fetch one layer in parallel.
 *
 * Prints one JSON object.  Exit status 2: no connection; 3: an answer without a length. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD_ROOM = 8192, EVENTS = 256, MAX_LATENCIES = 1 << 22, MAX_TRUNC = 64 << 20, TURNS = 64 };

enum phase { IN_HEAD, IN_BODY, IDLE };

struct connection {
    int fd;
    enum phase phase;
    int unused;     /* no answer has come on it yet, so its end is an error and not a server's idle timeout */
    int last;       /* the server said that it will close it */
    long offset;    /* of the range that was asked for, or 0 */
    long rest;      /* bytes of the body still to come */
    double asked;
    int filled;
    char head[HEAD_ROOM];
};

static struct {
    int head_only;
    long step, size, next_offset;
    long wanted, asked;
    long requests, bytes, errors, bad_status, reconnects;
    char request[2048];
    int request_length;
    const char *method, *target;
    int port;
} run;

static float *latencies;
static long latency_count;
static char scratch[1 << 16];
static int epoll;

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

/* The four headers that containerd sends. */
static void compose(long offset) {
    char range[64] = "";
    if (offset >= 0) snprintf(range, sizeof range, "Range: bytes=%ld-\r\n", offset);
    run.request_length = snprintf(run.request, sizeof run.request,
        "%s %s HTTP/1.1\r\n"
        "Host: 127.0.0.1:%d\r\n"
        "User-Agent: containerd/2.1.0\r\n"
        "Accept: application/vnd.oci.image.manifest.v1+json, */*\r\n"
        "Accept-Encoding: zstd;q=1.0, gzip;q=0.8, deflate;q=0.5\r\n"
        "%s\r\n", run.method, run.target, run.port, range);
    if (run.request_length >= (int)sizeof run.request) { fprintf(stderr, "the target is too long\n"); exit(2); }
}

static void dial(struct connection *c) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(run.port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0 || connect(c->fd, (void *)&to, sizeof to)) { perror("connect"); exit(2); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &event);
    c->unused = 1;
}

static void ask(struct connection *c) {
    if (run.step) {
        compose(c->offset = run.next_offset);
        run.next_offset = run.next_offset + run.step < run.size ? run.next_offset + run.step : 0;
    }
    c->phase = IN_HEAD;
    c->filled = c->last = 0;
    c->asked = now();
    if (send(c->fd, run.request, run.request_length, MSG_NOSIGNAL) != run.request_length) run.errors++;
}

static void ask_again(struct connection *c) { close(c->fd); dial(c); ask(c); }

static void answered(struct connection *c) {
    run.requests++;
    if (latency_count < MAX_LATENCIES) latencies[latency_count++] = now() - c->asked;
    c->unused = 0;
    if (run.wanted && run.asked >= run.wanted) { c->phase = IDLE; return; }
    run.asked++;
    if (c->last) { run.reconnects++; ask_again(c); } else ask(c);
}

/* Returns 0 when the socket has nothing more for now. */
static int read_head(struct connection *c) {
    ssize_t n = recv(c->fd, c->head + c->filled, sizeof c->head - 1 - c->filled, 0);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) {
        if (n < 0 || c->filled || c->unused) run.errors++; else run.reconnects++;
        ask_again(c);
        return 0;
    }
    c->filled += n;
    c->head[c->filled] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) {
        if (c->filled == sizeof c->head - 1) { run.errors++; ask_again(c); return 0; }
        return 1;
    }
    int status = atoi(c->head + 9);
    /* "bytes=0-" asks for all of it, so either is right (RFC 9110, 14.2) */
    if (status != (run.step ? 206 : 200) && !(status == 200 && !c->offset)) run.bad_status++;
    *end = 0;
    char *length = strcasestr(c->head, "\ncontent-length:");
    if (!length && !run.head_only) { fprintf(stderr, "no content-length in: %s\n", c->head); exit(3); }
    if (strcasestr(c->head, "\nconnection: close")) c->last = 1;
    long size = length && !run.head_only ? atol(length + 16) : 0;
    if (run.step && size > run.step) { size = run.step; c->last = 1; }
    long got = c->filled - (end + 4 - c->head);
    if (got > size && !c->last) run.errors++;
    run.bytes += got < size ? got : size;
    c->rest = size - got;
    if (c->rest > 0) c->phase = IN_BODY; else answered(c);
    return 1;
}

static int read_body(struct connection *c) {
    ssize_t n = recv(c->fd, scratch, c->rest < MAX_TRUNC ? c->rest : MAX_TRUNC, MSG_TRUNC);
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) { run.errors++; ask_again(c); return 0; }
    run.bytes += n;
    c->rest -= n;
    if (!c->rest) answered(c);
    return 1;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc < 6) { fprintf(stderr, "usage: drain PORT CONNECTIONS SECONDS METHOD TARGET [REQUESTS [STEP SIZE]]\n"); return 64; }
    int count = atoi(argv[2]);
    double seconds = atof(argv[3]);
    run.port = atoi(argv[1]);
    run.method = argv[4];
    run.target = argv[5];
    run.head_only = !strcmp(run.method, "HEAD");
    run.wanted = argc > 6 ? atol(argv[6]) : 0;
    run.step = argc > 8 ? atol(argv[7]) : 0;
    run.size = argc > 8 ? atol(argv[8]) : 0;
    compose(-1);
    latencies = malloc(MAX_LATENCIES * sizeof *latencies);
    epoll = epoll_create1(0);
    struct connection *all = calloc(count, sizeof *all);
    if (!latencies || !all) { perror("malloc"); return 2; }
    for (int i = 0; i < count; i++) dial(&all[i]);

    double began = now(), cpu_before = cpu();
    for (int i = 0; i < count; i++) {
        if (run.wanted && run.asked >= run.wanted) { all[i].phase = IDLE; continue; }
        run.asked++;
        ask(&all[i]);
    }
    struct epoll_event events[EVENTS];
    while (now() < began + seconds && !(run.wanted && run.requests >= run.wanted)) {
        int ready = epoll_wait(epoll, events, EVENTS, 20);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            /* bounded, so that one connection with a lot to read does not starve the others */
            for (int turn = 0; turn < TURNS; turn++)
                if (c->phase == IDLE || !(c->phase == IN_HEAD ? read_head(c) : read_body(c))) break;
        }
    }
    double took = now() - began;

    qsort(latencies, latency_count, sizeof *latencies, ascending);
    double p50 = latency_count ? latencies[latency_count / 2] : 0;
    double p99 = latency_count ? latencies[(long)(latency_count * 0.99)] : 0;
    printf("{\"seconds\":%.6f,\"requests\":%ld,\"bytes\":%ld,\"p50_us\":%.1f,\"p99_us\":%.1f,"
           "\"errors\":%ld,\"bad_status\":%ld,\"reconnects\":%ld,\"client_cpu\":%.4f}\n",
           took, run.requests, run.bytes, p50 * 1e6, p99 * 1e6, run.errors, run.bad_status, run.reconnects,
           cpu() - cpu_before);
    return 0;
}
