/* Bytes: little-endian numbers wherever they stand, checksums, and lines of text.
 *
 * Knows no disk and no firmware. Nothing here allocates, and nothing reads beyond what it is given.
 */
#ifndef BYTES_H
#define BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* From libc on the host, from bytes.c in firmware. */
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *at, int value, size_t size);
int memcmp(const void *a, const void *b, size_t size);

static inline uint16_t get16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static inline uint32_t get32(const uint8_t *at)
{
    return get16(at) | (uint32_t)get16(at + 2) << 16;
}

static inline uint64_t get64(const uint8_t *at)
{
    return get32(at) | (uint64_t)get32(at + 4) << 32;
}

static inline void put32(uint8_t *at, uint32_t value)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

static inline void put64(uint8_t *at, uint64_t value)
{
    put32(at, (uint32_t)value);
    put32(at + 4, (uint32_t)(value >> 32));
}

/* CRC-32 as in zlib and GPT; `crc` is 0, or what a first part gave. */
uint32_t crc32_more(uint32_t crc, const uint8_t *data, size_t size);

/* The CRC-32 of `size` bytes whose own checksum, at `at`, counts as zero. */
uint32_t crc32_without(const uint8_t *data, size_t size, size_t at);

struct sha256 {
    uint32_t state[8];
    uint64_t size;
    uint8_t block[64];
};

void sha256_begin(struct sha256 *hash);
void sha256_more(struct sha256 *hash, const uint8_t *data, size_t size);
void sha256_end(struct sha256 *hash, uint8_t digest[32]);

/* A line for people. What does not fit is left out. */
struct line {
    char text[200];
    size_t length;
};

void add(struct line *line, const char *text);
void add_number(struct line *line, uint64_t number);

#endif
