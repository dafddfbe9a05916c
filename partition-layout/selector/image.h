/* What stands in a slot: where its kernel is, and whether it is whole. The C twin of
 * update_agent/core/slot_image.py, as far as a selector needs it.
 *
 * The rules kept here: every size and offset is held against the slot's partition before it is used,
 * and nothing of the kernel is looked at before its SHA-256 is right.
 */
#ifndef IMAGE_H
#define IMAGE_H

#include "slot.h"

enum {
    BLOCK = 4096,
    KERNEL_STEP = 1 << 20, /* so much of a kernel is read at once */
};

#define MAX_KERNEL ((uint64_t)1 << 30) /* beyond all kernels; PE knows no sizes above 4 GiB */

struct kernel {
    uint64_t lba;  /* where it begins on the disk */
    uint64_t size; /* in bytes */
    uint8_t digest[32];
};

/* Say where the slot's kernel is; return NULL, or what is wrong. `scratch` has room for BLOCK. */
const char *kernel_find(struct disk *disk, const struct slot *slot, uint8_t *scratch,
                        struct kernel *kernel);

/* Read the kernel into `to`, which has room for it in whole blocks; NULL, or what is wrong. */
const char *kernel_read(struct disk *disk, const struct kernel *kernel, uint8_t *to);

/* Add the version that a unified kernel image names in its .osrel section; false when it has none. */
bool add_version(struct line *line, const uint8_t *image, size_t size);

/* The two parts of kernel_find, for bytes that were read. */
const char *image_parse(const uint8_t header[512], uint64_t room, uint64_t *kernel_offset,
                        uint64_t *region_size);
const char *kernel_parse(const uint8_t block[BLOCK], uint64_t region_size, struct kernel *kernel);

#endif
