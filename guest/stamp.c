/* Writes numbered stamps to two disks so that a host can tell whether snapshots of both show one instant.
 *
 * Stamp n goes to the last MiB of disk A, then to that of disk B (behind the file systems, unbuffered and durable), and
 * every LOG_EVERY stamps a 16-byte record goes into a log file on each disk's file system, with fsync. Therefore, at any
 * instant: B <= A <= B + 1, and both logs hold every multiple of LOG_EVERY below A. A start goes on from the stamp found.
 * Before a stamp is written over, it is read and must be the one that memory says was written last: a guest that goes on
 * with its memory of one instant and its disks of another finds out within one round.
 *
 *   stamp run A B LOG_A LOG_B    check what is there, then write stamps for ever; progress on standard output
 *   stamp wreck DISK MIB         overwrite the first MIB MiB of a disk with garbage
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { LOG_EVERY = 8, RECORD = 16, BLOCK = 4096, MIB = 1 << 20 };

struct side {
    int disk, log;
    off_t at;
};

static char *block;

static void die(const char *what) {
    printf("STAMP-FAILED %s: %s\n", what, strerror(errno));
    exit(1);
}

static long read_stamp(const struct side *s) {
    if (pread(s->disk, block, BLOCK, s->at) != BLOCK) die("read stamp");
    return *(long *)block;
}

static void write_stamp(const struct side *s, long n) {
    memset(block, 0, BLOCK);
    *(long *)block = n;
    if (pwrite(s->disk, block, BLOCK, s->at) != BLOCK) die("write stamp");
}

static void expect_stamp(const struct side *s, const char *name, long n) {
    long found = read_stamp(s);
    if (found == n) return;
    printf("STAMP-BAD disk %s holds %ld, memory says %ld\n", name, found, n);
    exit(1);
}

static const char *record_of(long n) {
    static char record[2 * RECORD];
    snprintf(record, sizeof record, "%0*ld\n", RECORD - 1, n);
    return record;
}

static void write_record(const struct side *s, long n) {
    if (pwrite(s->log, record_of(n), RECORD, n / LOG_EVERY * RECORD) != RECORD) die("write log");
    if (fsync(s->log)) die("fsync log");
}

/* Returns how many records there must be, after reading each of them. */
static long check_log(const struct side *s, const char *name, long below) {
    long records = (below + LOG_EVERY - 1) / LOG_EVERY;
    char found[RECORD];
    for (long i = 0; i < records; i++) {
        if (pread(s->log, found, RECORD, i * RECORD) != RECORD || memcmp(found, record_of(i * LOG_EVERY), RECORD)) {
            printf("STAMP-BAD log %s record %ld of %ld\n", name, i, records);
            exit(1);
        }
    }
    return records;
}

static struct side open_side(const char *disk, const char *log) {
    struct side s;
    s.disk = open(disk, O_RDWR | O_DIRECT | O_DSYNC);
    if (s.disk < 0) die(disk);
    s.log = open(log, O_RDWR | O_CREAT, 0644);
    if (s.log < 0) die(log);
    s.at = lseek(s.disk, 0, SEEK_END) - MIB;
    return s;
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void run(char **arg) {
    struct side a = open_side(arg[0], arg[2]), b = open_side(arg[1], arg[3]);
    long at_a = read_stamp(&a), at_b = read_stamp(&b);
    if (at_b > at_a || at_a > at_b + 1) {
        printf("STAMP-BAD a=%ld b=%ld\n", at_a, at_b);
        exit(1);
    }
    check_log(&a, "a", at_a);
    printf("STAMP-START a=%ld b=%ld records=%ld\n", at_a, at_b, check_log(&b, "b", at_a));
    double told = 0;
    for (long n = at_a, last_b = at_b;; last_b = n++) {
        expect_stamp(&a, "a", n > at_a ? n - 1 : at_a);
        write_stamp(&a, n);
        expect_stamp(&b, "b", last_b);
        write_stamp(&b, n);
        if (n % LOG_EVERY == 0) {
            write_record(&a, n);
            write_record(&b, n);
        }
        if (seconds() - told > 0.05) {
            told = seconds();
            printf("STAMP %ld\n", n);
        }
    }
}

static void wreck(const char *disk, long mib) {
    /* Once the disk is garbage nothing can be paged in any more. */
    if (mlockall(MCL_CURRENT | MCL_FUTURE)) die("mlockall");
    int fd = open(disk, O_RDWR | O_DIRECT | O_DSYNC);
    if (fd < 0) die(disk);
    char *garbage = aligned_alloc(BLOCK, MIB);
    if (!garbage) die("memory");
    memset(garbage, 0xDB, MIB);
    for (long i = 0; i < mib; i++)
        if (pwrite(fd, garbage, MIB, i * MIB) != MIB) die("wreck");
    printf("WRECKED %ld\n", mib);
}

int main(int count, char **arg) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    block = aligned_alloc(BLOCK, BLOCK);
    if (!block) die("memory");
    if (count == 6 && !strcmp(arg[1], "run")) run(arg + 2);
    else if (count == 4 && !strcmp(arg[1], "wreck")) wreck(arg[2], atol(arg[3]));
    else return 2;
    return 0;
}
