/* Both ends of the timed connections. There is one connection at a time, so that the data path is timed, and not a queue.
 *
 *   packets accept PORT                    accept, read a byte and close, forever
 *   packets drain PORT                     accept and read everything, one connection after another, forever
 *   packets connect ADDRESS PORT SECONDS   connections/s, and the 99th percentile of connect(2) in microseconds
 *   packets send ADDRESS PORT SECONDS      MiB/s of one connection
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MOST_CONNECTIONS 4000000
#define BUFFER_BYTES (256 * 1024)

static char buffer[BUFFER_BYTES];

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

static struct sockaddr_in address_of(const char *host, const char *port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
        fail(host);
    return address;
}

/* A reset at the end leaves no side in TIME_WAIT, so that ports do not run out. */
static void reset(int connection) {
    struct linger at_once = {.l_onoff = 1};
    setsockopt(connection, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(connection);
}

static void serve(const char *port, int drains) {
    struct sockaddr_in address = address_of("0.0.0.0", port);
    int listening = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 128))
        fail("listen");
    for (;;) {
        int connection = accept(listening, NULL, NULL);
        if (connection < 0)
            continue;
        /* Wait for the other end to send first: a reset before its connect(2) has returned would make connect(2) fail. */
        while (read(connection, buffer, sizeof buffer) > 0 && drains)
            ;
        reset(connection);
    }
}

static int open_to(const struct sockaddr_in *address) {
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (connection < 0 || connect(connection, (const struct sockaddr *)address, sizeof *address))
        fail("connect");
    return connection;
}

static int compare(const void *one, const void *other) {
    float difference = *(const float *)one - *(const float *)other;
    return (difference > 0) - (difference < 0);
}

static void time_connections(const struct sockaddr_in *address, double seconds) {
    float *took = malloc(MOST_CONNECTIONS * sizeof *took);
    double begin = now(), end = begin + seconds, at;
    size_t count = 0;
    if (!took)
        fail("malloc");
    while ((at = now()) < end && count < MOST_CONNECTIONS) {
        int connection = open_to(address);
        took[count++] = (now() - at) * 1e6;
        if (write(connection, ".", 1) != 1)
            fail("write");
        while (read(connection, buffer, sizeof buffer) > 0)
            ; /* until the other end resets the connection, so that its queue stays empty */
        close(connection);
    }
    double seconds_taken = now() - begin;
    qsort(took, count, sizeof *took, compare);
    printf("%.1f %.1f\n", count / seconds_taken, took[count * 99 / 100]);
}

static void time_stream(const struct sockaddr_in *address, double seconds) {
    int connection = open_to(address);
    double begin = now(), bytes = 0;
    while (now() - begin < seconds) {
        ssize_t sent = write(connection, buffer, sizeof buffer);
        if (sent < 0)
            fail("write");
        bytes += sent;
    }
    printf("%.1f\n", bytes / (now() - begin) / 1048576);
}

int main(int count, char **arguments) {
    const char *verb = count > 2 ? arguments[1] : "";
    if (count == 3 && (!strcmp(verb, "accept") || !strcmp(verb, "drain")))
        serve(arguments[2], !strcmp(verb, "drain"));
    if (count == 5 && (!strcmp(verb, "connect") || !strcmp(verb, "send"))) {
        struct sockaddr_in address = address_of(arguments[2], arguments[3]);
        (!strcmp(verb, "connect") ? time_connections : time_stream)(&address, atof(arguments[4]));
        return 0;
    }
    fprintf(stderr, "usage: packets accept|drain PORT, packets connect|send ADDRESS PORT SECONDS\n");
    return 2;
}
