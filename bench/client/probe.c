/* How late does a server answer a small request while it is busy with something else?
 *
 *   probe PORT INTERVAL_US SECONDS METHOD TARGET
 *
 * Asks on one connection at fixed times and counts from the time at which it should have asked, so an answer that
 * takes long is held against every request that it delayed (no coordinated omission).  It runs with real-time
 * priority if it may: it shares a core with the bulk client, and how long it waited for that core is no news about
 * the server.  SIGTERM ends it early.  Prints one JSON object. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MAX_SAMPLES = 1 << 20 };

static volatile sig_atomic_t stopped;
static void stop(int signal) { (void)signal; stopped = 1; }

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* Read one answer; returns its status, or -1. */
static int answer(int fd, int head_only) {
    char head[8192];
    int filled = 0;
    char *end;
    do {
        ssize_t n = recv(fd, head + filled, sizeof head - 1 - filled, 0);
        if (n <= 0) return -1;
        filled += n;
        head[filled] = 0;
        end = strstr(head, "\r\n\r\n");
    } while (!end && filled < (int)sizeof head - 1);
    if (!end) return -1;
    char *length = strcasestr(head, "\ncontent-length:");
    long rest = (length && !head_only ? atol(length + 16) : 0) - (filled - (end + 4 - head));
    while (rest > 0) {
        char body[8192];
        ssize_t n = recv(fd, body, rest < (long)sizeof body ? rest : (long)sizeof body, 0);
        if (n <= 0) return -1;
        rest -= n;
    }
    return atoi(head + 9);
}

static int ascending(const void *a, const void *b) {
    long x = *(const long *)a, y = *(const long *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    if (argc != 6) { fprintf(stderr, "usage: probe PORT INTERVAL_US SECONDS METHOD TARGET\n"); return 64; }
    long interval = atol(argv[2]) * 1000, count = 0, errors = 0;
    char request[2048];
    int length = snprintf(request, sizeof request, "%s %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nAccept: */*\r\n\r\n", argv[4], argv[5], argv[1]);
    struct sched_param priority = {.sched_priority = 1};
    int realtime = sched_setscheduler(0, SCHED_FIFO, &priority) == 0;
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);

    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    if (fd < 0 || connect(fd, (void *)&to, sizeof to)) { perror("connect"); return 2; }
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);

    long *late = malloc(MAX_SAMPLES * sizeof *late);
    long due = now_ns(), until = due + (long)(atof(argv[3]) * 1e9);
    while (!stopped && due < until && count < MAX_SAMPLES) {
        struct timespec at = {due / 1000000000L, due % 1000000000L};
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
        if (stopped) break;
        if (send(fd, request, length, MSG_NOSIGNAL) != length) { errors++; break; }
        int status = answer(fd, !strcmp(argv[4], "HEAD"));
        if (status < 0 && stopped) break;
        if (status != 200) errors++;
        if (status < 0) break;
        late[count++] = now_ns() - due;
        due += interval;
    }
    qsort(late, count, sizeof *late, ascending);
    printf("{\"count\":%ld,\"errors\":%ld,\"realtime\":%s,\"p50_us\":%.1f,\"p99_us\":%.1f,\"max_us\":%.1f}\n", count, errors,
           realtime ? "true" : "false", count ? late[count / 2] / 1e3 : 0, count ? late[(long)(count * 0.99)] / 1e3 : 0,
           count ? late[count - 1] / 1e3 : 0);
    return 0;
}
