/* Slot images. See image.h for the rules. */
#include "image.h"

const char *image_parse(const uint8_t header[512], uint64_t room, uint64_t *kernel_offset,
                        uint64_t *region_size)
{
    uint64_t image_size = get64(header + 16), fs_size = get64(header + 24);
    uint64_t verity_offset = get64(header + 32);

    *kernel_offset = get64(header + 40);
    *region_size = get64(header + 48);
    if (memcmp(header, "UASLOT\0\1", 8))
        return "slot header: magic";
    if (get32(header + 8) != crc32_without(header, 512, 8))
        return "slot header: CRC-32";
    if ((image_size | fs_size | verity_offset | *kernel_offset | *region_size) % BLOCK)
        return "slot header: a size or offset is no multiple of 4096";
    if (verity_offset != fs_size)
        return "slot header: verity offset";
    if (fs_size < 2 * BLOCK)
        return "slot header: fs size";
    if (*kernel_offset <= fs_size)
        return "slot header: kernel offset";
    if (*kernel_offset > image_size || *region_size != image_size - *kernel_offset)
        return "slot header: image size";
    if (image_size > room)
        return "slot header: image size is beyond the slot's partition";
    return NULL;
}

const char *kernel_parse(const uint8_t block[BLOCK], uint64_t region_size, struct kernel *kernel)
{
    kernel->size = get64(block + 8);
    memcpy(kernel->digest, block + 16, sizeof kernel->digest);
    if (memcmp(block, "UAKERN\0\1", 8))
        return "kernel region: magic";
    if (get32(block + 48) != crc32_without(block, BLOCK, 48))
        return "kernel region: CRC-32";
    if (!kernel->size || region_size < BLOCK || kernel->size > region_size - BLOCK)
        return "kernel region: kernel size";
    if (kernel->size > MAX_KERNEL)
        return "kernel region: kernel size is above 1 GiB";
    return NULL;
}

/* Read whole 4 KiB blocks at an offset that is a multiple of 4 KiB, of the slot's partition. */
static bool read_blocks(struct disk *disk, uint64_t lba, uint64_t blocks, uint8_t *to)
{
    return disk->read(disk, lba, blocks * (BLOCK / disk->sector_size), to);
}

const char *kernel_find(struct disk *disk, const struct slot *slot, uint8_t *scratch,
                        struct kernel *kernel)
{
    uint64_t sectors = slot->last_lba - slot->first_lba + 1, offset, region_size, lba;
    uint64_t room = sectors > UINT64_MAX / disk->sector_size ? UINT64_MAX
                                                             : sectors * disk->sector_size;
    const char *wrong;

    if (room < BLOCK || !read_blocks(disk, slot->first_lba, 1, scratch))
        return "slot header: cannot be read";
    wrong = image_parse(scratch + 512, room, &offset, &region_size);
    if (wrong)
        return wrong;
    if (region_size < BLOCK)
        return "kernel region: kernel size";
    lba = slot->first_lba + offset / disk->sector_size;
    if (!read_blocks(disk, lba, 1, scratch))
        return "kernel region: cannot be read";
    kernel->lba = lba + BLOCK / disk->sector_size;
    return kernel_parse(scratch, region_size, kernel);
}

const char *kernel_read(struct disk *disk, const struct kernel *kernel, uint8_t *to)
{
    struct sha256 hash;
    uint8_t digest[32];

    sha256_begin(&hash);
    for (uint64_t at = 0; at < kernel->size; at += KERNEL_STEP) {
        uint64_t left = kernel->size - at, size = left < KERNEL_STEP ? left : KERNEL_STEP;
        uint64_t lba = kernel->lba + at / disk->sector_size;

        if (!read_blocks(disk, lba, (size + BLOCK - 1) / BLOCK, to + at))
            return "kernel: cannot be read";
        sha256_more(&hash, to + at, size);
    }
    sha256_end(&hash, digest);
    return memcmp(digest, kernel->digest, sizeof digest) ? "kernel: SHA-256 is wrong" : NULL;
}

/* The version --------------------------------------------------------------------------------- */

/* Point to the content of a PE section, within the image; NULL when there is none. */
static const uint8_t *section(const uint8_t *image, size_t size, const char name[8], size_t *length)
{
    size_t pe, at;
    unsigned count;

    if (size < 64 || memcmp(image, "MZ", 2))
        return NULL;
    pe = get32(image + 60);
    if (pe > size || size - pe < 24 || memcmp(image + pe, "PE\0\0", 4))
        return NULL;
    at = pe + 24 + get16(image + pe + 20); /* SizeOfOptionalHeader */
    for (count = get16(image + pe + 6); count && at <= size && size - at >= 40; count--, at += 40) {
        size_t start = get32(image + at + 20);

        if (memcmp(image + at, name, 8))
            continue;
        *length = get32(image + at + 8); /* VirtualSize: without the padding */
        return start <= size && *length <= size - start ? image + start : NULL;
    }
    return NULL;
}

/* Add the value of a line `key=value` or `key="value"`, if it is plain. */
static bool add_value(struct line *line, const uint8_t *text, size_t size, const char *key)
{
    char value[33];
    size_t length = 0, at = 0, keys = 0;

    while (key[keys])
        keys++;
    while (size - at >= keys && memcmp(text + at, key, keys)) {
        while (at < size && text[at] != '\n')
            at++;
        if (at == size)
            return false;
        at++;
    }
    if (size - at < keys)
        return false;
    for (at += keys; at < size && text[at] != '\n'; at++) {
        if (text[at] == '"' || text[at] == '\'')
            continue;
        if (text[at] <= ' ' || text[at] > '~' || length + 1 == sizeof value)
            return false;
        value[length++] = (char)text[at];
    }
    value[length] = 0;
    add(line, value);
    return length > 0;
}

bool add_version(struct line *line, const uint8_t *image, size_t size)
{
    size_t length = 0;
    const uint8_t *text = section(image, size, ".osrel\0", &length);

    return text && (add_value(line, text, length, "IMAGE_VERSION=") ||
                    add_value(line, text, length, "VERSION_ID="));
}
