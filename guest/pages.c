/* Rewrites memory for ever and checks every page before it does, so that a snapshot of memory which mixes two instants, or
 * a resumed machine with a wrong page, is found out.
 *
 * In pass n each page holds n, its own number, and words derived from both. A page that holds anything else is bad.
 *
 *   pages MIB    progress on standard output: PAGES pass bad (a line for each pass), TICK n (twenty a second)
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PAGE = 4096, WORDS = PAGE / 8, PAGES_PER_MIB = 256, LINE = 8 };

static uint64_t mix(uint64_t pass, uint64_t page) {
    uint64_t x = pass * 0x9E3779B97F4A7C15u ^ page * 0xD6E8FEB86659FD93u;
    return (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
}

static void fill(uint64_t *at, uint64_t pass, uint64_t page) {
    uint64_t value = mix(pass, page);
    at[0] = pass;
    at[1] = page;
    for (int i = 2; i < WORDS; i++) at[i] = value + i;
}

/* One word of every cache line. */
static int holds(const volatile uint64_t *at, uint64_t pass, uint64_t page) {
    uint64_t value = mix(pass, page);
    if (at[0] != pass || at[1] != page) return 0;
    for (int i = LINE - 1; i < WORDS; i += LINE)
        if (at[i] != value + i) return 0;
    return 1;
}

static void tick(void) {
    for (long n = 0;; n++) {
        printf("TICK %ld\n", n);
        usleep(50000);
    }
}

int main(int count, char **arg) {
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 2) return 2;
    uint64_t pages = strtoul(arg[1], NULL, 10) * PAGES_PER_MIB;
    uint64_t *memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
        puts("PAGES-FAILED no memory");
        return 1;
    }
    if (fork() == 0) tick();
    for (uint64_t i = 0; i < pages; i++) fill(memory + i * WORDS, 0, i);
    for (uint64_t pass = 0;; pass++) {
        long bad = 0;
        for (uint64_t i = 0; i < pages; i++) {
            bad += !holds(memory + i * WORDS, pass, i);
            fill(memory + i * WORDS, pass + 1, i);
        }
        printf("PAGES %lu %ld\n", pass, bad);
    }
}
