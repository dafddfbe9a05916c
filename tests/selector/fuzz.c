/* The libFuzzer target: a boot from a disk that is good but for what the input changes.
 *
 * The input is a list of patches to a small disk with a good table and two good slots, and says
 * which checksums are mended afterwards (else the fuzzer would have to break CRC-32 to get
 * anywhere) and which operation fails. Beside what the sanitizers watch, held here:
 *
 *  - LBA 0 is never written, nor anything between the first slot and the last usable sector;
 *  - no slot's tries go up, and no other bit of its word changes;
 *  - each slot is started once at most, and a slot on trial only after its try was counted.
 */
#include <stdlib.h>
#include <string.h>

#include "boot.h"
#include "image.h"

enum {
    SECTORS = 160,
    COUNT = 8, /* entries: with sectors of 512 bytes an array fills two */
    FIRST = 40,
    SLOT_BYTES = 6 * BLOCK,
    LAST_USABLE = 150,
    HEADERS = 2,
};

static uint8_t medium[SECTORS * MAX_SECTOR];
static uint8_t kernel_room[SLOT_BYTES];
static struct gpt *gpt;
static int operations, fails_at;
static bool written;
static unsigned started[2];
static uint64_t words_before[2];
static bool words_known;

static uint8_t *sector_at(const struct disk *disk, uint64_t lba)
{
    return medium + lba * disk->sector_size;
}

static void hold(bool promise)
{
    if (!promise)
        abort();
}

static bool fuzz_read(struct disk *disk, uint64_t lba, uint64_t count, void *to)
{
    if (lba >= disk->sectors || count > disk->sectors - lba)
        return false;
    memcpy(to, sector_at(disk, lba), count * disk->sector_size);
    return true;
}

static bool fuzz_write(struct disk *disk, uint64_t lba, uint64_t count, const void *from)
{
    hold(count > 0 && lba > 0 && lba < disk->sectors && count <= disk->sectors - lba);
    if (operations++ == fails_at)
        return false;
    written = true;
    memcpy(sector_at(disk, lba), from, count * disk->sector_size);
    return true;
}

static bool fuzz_flush(struct disk *disk)
{
    (void)disk;
    return operations++ != fails_at;
}

static bool look(struct disk *disk, struct slot slots[2])
{
    const struct table *table;

    gpt_read(gpt, disk);
    return !gpt_authoritative(gpt, &table) && !slots_find(table, slots);
}

static const char *fuzz_load(struct boot *boot, const struct slot *slot)
{
    struct kernel kernel;
    struct line line = {0};
    const char *wrong = kernel_find(boot->disk, slot, boot->gpt->seen.primary.array, &kernel);

    if (wrong)
        return wrong;
    hold(kernel.size <= SECTORS * MAX_SECTOR);
    if (kernel.size > sizeof kernel_room - BLOCK)
        return "larger than the room of this test";
    wrong = kernel_read(boot->disk, &kernel, kernel_room);
    if (!wrong)
        add_version(&line, kernel_room, kernel.size);
    return wrong;
}

static const char *fuzz_start(struct boot *boot, const struct slot *slot)
{
    static struct gpt *second;
    struct gpt *first = gpt;
    struct slot slots[2];
    unsigned which = slot->name == 'B';

    (void)boot;
    hold(++started[which] == 1);
    if (!second)
        second = aligned_alloc(MAX_SECTOR, sizeof *second);
    gpt = second;
    if (look(boot->disk, slots) && words_known) {
        unsigned before = words_before[which] >> 52 & 15;
        bool on_trial = words_before[which] >> 48 & 15 && before && !(words_before[which] >> 56 & 1);

        hold(!on_trial || slot_tries(&slots[which]) == before - 1);
    }
    gpt = first;
    return "returns";
}

static void fuzz_say(struct boot *boot, const char *line)
{
    (void)boot;
    hold(strlen(line) < sizeof(struct line) - sizeof(size_t));
}

/* The good disk ------------------------------------------------------------------------------- */

static void put_entry(uint8_t *entry, unsigned number, uint64_t first, uint64_t last, char name)
{
    static const uint8_t type[16] = {0xbd, 0x45, 0xdf, 0x14, 0x68, 0xad, 0xeb, 0x4d,
                                     0xae, 0x12, 0x8e, 0x00, 0xaf, 0xdd, 0x62, 0xf4};
    const char label[6] = {'R', 'O', 'O', 'T', '-', name};

    memcpy(entry, type, sizeof type);
    entry[16] = (uint8_t)number;
    put64(entry + 32, first);
    put64(entry + 40, last);
    put64(entry + 48, (uint64_t)(name == 'A' ? 0x0101 : 0x0032) << 48);
    for (unsigned i = 0; i < sizeof label; i++)
        entry[56 + 2 * i] = (uint8_t)label[i];
}

static void put_header(const struct disk *disk, uint64_t lba, uint64_t other, uint64_t array)
{
    uint8_t *header = sector_at(disk, lba);

    memcpy(header, "EFI PART", 8);
    put32(header + 8, 0x10000);
    put32(header + 12, 92);
    put64(header + 24, lba);
    put64(header + 32, other);
    put64(header + 40, 8);
    put64(header + 48, LAST_USABLE);
    put64(header + 72, array);
    put32(header + 80, COUNT);
    put32(header + 84, ENTRY_SIZE);
}

/* The least of a PE with a section that names a version. */
static void put_kernel(uint8_t *kernel)
{
    memcpy(kernel, "MZ", 2);
    put32(kernel + 60, 64);
    memcpy(kernel + 64, "PE\0\0", 4);
    kernel[70] = 1;
    memcpy(kernel + 88, ".osrel\0", 8);
    put32(kernel + 96, 40);
    put32(kernel + 108, 140);
    memcpy(kernel + 140, "VERSION_ID=\"12\"\nIMAGE_VERSION=1.2.3\n", 36);
}

static void put_slot(uint8_t *slot)
{
    uint8_t *header = slot + 512, *block = slot + 3 * BLOCK;

    memcpy(header, "UASLOT\0\1", 8);
    put64(header + 16, 5 * BLOCK);
    put64(header + 24, 2 * BLOCK);
    put64(header + 32, 2 * BLOCK);
    put64(header + 40, 3 * BLOCK);
    put64(header + 48, 2 * BLOCK);
    memcpy(block, "UAKERN\0\1", 8);
    put64(block + 8, 200);
    put_kernel(block + BLOCK);
}

static void lay_out(const struct disk *disk)
{
    uint64_t sectors = SLOT_BYTES / disk->sector_size, array = SECTORS - 1 - 1;

    if (disk->sector_size == 512)
        array--;
    memset(medium, 0, SECTORS * disk->sector_size);
    medium[450] = 0xee;
    medium[510] = 0x55;
    medium[511] = 0xaa;
    for (unsigned i = 0; i < 2; i++) {
        uint8_t *entries = sector_at(disk, i ? array : 2);

        put_entry(entries, 1, FIRST, FIRST + sectors - 1, 'A');
        put_entry(entries + ENTRY_SIZE, 2, FIRST + sectors, FIRST + 2 * sectors - 1, 'B');
    }
    put_header(disk, 1, SECTORS - 1, 2);
    put_header(disk, SECTORS - 1, 1, array);
    put_slot(sector_at(disk, FIRST));
    put_slot(sector_at(disk, FIRST + sectors));
}

/* Checksums ----------------------------------------------------------------------------------- */

static void mend_header(const struct disk *disk, uint64_t lba, bool array)
{
    uint8_t *header = sector_at(disk, lba);
    uint64_t at = get64(header + 72), size = (uint64_t)get32(header + 80) * ENTRY_SIZE;
    uint32_t length = get32(header + 12);

    if (array && at < SECTORS && size <= (SECTORS - at) * disk->sector_size)
        put32(header + 88, crc32_more(0, sector_at(disk, at), size));
    if (length >= 20 && length <= disk->sector_size)
        put32(header + 16, crc32_without(header, length, 16));
}

static void mend_slot(const struct disk *disk, uint64_t lba)
{
    uint8_t *slot = sector_at(disk, lba), *block = slot + 3 * BLOCK;
    uint64_t size = get64(block + 8);
    struct sha256 hash;

    put32(slot + 512 + 8, crc32_without(slot + 512, 512, 8));
    if (size <= 2 * BLOCK) {
        sha256_begin(&hash);
        sha256_more(&hash, block + BLOCK, size);
        sha256_end(&hash, block + 16);
    }
    put32(block + 48, crc32_without(block, BLOCK, 48));
}

/* Where the fuzzer may want to write: headers, arrays, slots, the MBR. */
static uint8_t *place(const struct disk *disk, unsigned which, unsigned offset)
{
    uint64_t sectors = SLOT_BYTES / disk->sector_size;
    uint8_t *places[] = {
        sector_at(disk, 1), sector_at(disk, SECTORS - 1), sector_at(disk, 2),
        sector_at(disk, SECTORS - (disk->sector_size == 512 ? 3 : 2)), sector_at(disk, FIRST) + 512,
        sector_at(disk, FIRST) + 3 * BLOCK, sector_at(disk, FIRST + sectors) + 512,
        sector_at(disk, FIRST + sectors) + 3 * BLOCK, sector_at(disk, FIRST + sectors) + 4 * BLOCK,
        medium,
    };
    uint8_t *at = places[which % (sizeof places / sizeof *places)] + offset;

    return at < medium + SECTORS * disk->sector_size - 64 ? at : medium;
}

static void patch(const struct disk *disk, const uint8_t *data, size_t size)
{
    while (size >= 4) {
        size_t length = data[3] % 17;
        uint8_t *at = place(disk, data[0], data[1] | (data[2] & 15u) << 8);

        if (length > size - 4)
            length = size - 4;
        memcpy(at, data + 4, length);
        data += 4 + length;
        size -= 4 + length;
    }
}

static void mend(const struct disk *disk, uint8_t which)
{
    if (which & 1)
        mend_header(disk, 1, which & 2);
    if (which & 4)
        mend_header(disk, SECTORS - 1, which & 8);
    if (which & 16)
        mend_slot(disk, FIRST);
    if (which & 32)
        mend_slot(disk, FIRST + SLOT_BYTES / disk->sector_size);
}

/* ---------------------------------------------------------------------------------------------- */

static void hold_words(struct disk *disk)
{
    const uint64_t tries = (uint64_t)15 << 52;
    struct slot slots[2];

    if (!look(disk, slots) || !words_known)
        return;
    for (unsigned i = 0; i < 2; i++) {
        hold((slots[i].word & ~tries) == (words_before[i] & ~tries));
        hold((slots[i].word & tries) <= (words_before[i] & tries));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct disk disk = {512, SECTORS, fuzz_read, fuzz_write, fuzz_flush};
    struct boot machine = {NULL, &disk, fuzz_load, fuzz_start, fuzz_say};
    static uint8_t before[sizeof medium];
    struct slot slots[2];
    size_t from, to;

    if (size < 3)
        return 0;
    if (!gpt)
        gpt = aligned_alloc(MAX_SECTOR, sizeof *gpt);
    machine.gpt = gpt;
    disk.sector_size = data[0] & 1 ? 4096 : 512;
    fails_at = data[1] & 64 ? data[1] % 64 : -1;
    lay_out(&disk);
    patch(&disk, data + 3, size - 3);
    mend(&disk, data[2]);
    memcpy(before, medium, SECTORS * disk.sector_size);
    words_known = look(&disk, slots);
    words_before[0] = words_known ? slots[0].word : 0;
    words_before[1] = words_known ? slots[1].word : 0;
    operations = 0;
    written = false;
    started[0] = started[1] = 0;
    boot(&machine);
    hold(!memcmp(before, medium, disk.sector_size));
    from = words_known ? slots[0].first_lba : 0;
    to = words_known ? slots[0].last_lba : 0;
    hold(!memcmp(before + from * disk.sector_size, medium + from * disk.sector_size,
                 (to - from + words_known) * disk.sector_size));
    hold(words_known || !written);
    hold_words(&disk);
    return 0;
}
