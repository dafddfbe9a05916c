/* The selector's logic as tests call it, through ctypes: flat arguments, no structures.
 *
 * Disks, kernels and the console are the test's, as callbacks that return 1 for success.
 */
#include <stdlib.h>

#include "boot.h"
#include "image.h"

typedef int transfer(uint64_t lba, uint64_t count, void *data);
typedef int settle(void);
typedef int attempt(int starting, int slot);
typedef void listener(const char *line);

struct host_disk {
    struct disk disk;
    transfer *read, *write;
    settle *flush;
};

struct host_boot {
    struct boot boot;
    attempt *run;
    listener *console;
};

struct host_slot {
    uint64_t number, first_lba, last_lba, word;
};

static bool host_read(struct disk *disk, uint64_t lba, uint64_t count, void *to)
{
    return ((struct host_disk *)disk)->read(lba, count, to);
}

static bool host_write(struct disk *disk, uint64_t lba, uint64_t count, const void *from)
{
    return ((struct host_disk *)disk)->write(lba, count, (void *)(uintptr_t)from);
}

static bool host_flush(struct disk *disk)
{
    return ((struct host_disk *)disk)->flush();
}

static const char *host_load(struct boot *boot, const struct slot *slot)
{
    return ((struct host_boot *)boot)->run(0, slot->name) ? NULL : "does not load";
}

static const char *host_start(struct boot *boot, const struct slot *slot)
{
    ((struct host_boot *)boot)->run(1, slot->name);
    return "does not run";
}

static void host_say(struct boot *boot, const char *line)
{
    ((struct host_boot *)boot)->console(line);
}

/* Everything exported is declared here, for -Wmissing-prototypes. */
struct host_disk *host_disk(uint32_t sector_size, uint64_t sectors, transfer *read, transfer *write,
                            settle *flush);
struct gpt *host_gpt(void);
void host_free(void *memory);
void host_look(struct gpt *gpt, struct host_disk *disk);
int host_fault(const struct gpt *gpt, int backup, const char **field, uint32_t *partition);
int host_slots(const struct gpt *gpt, struct host_slot slots[2]);
int host_set_words(struct gpt *gpt, struct host_disk *disk, const uint64_t words[2]);
int host_count_down(struct gpt *gpt, struct host_disk *disk, int name);
int host_give_up(struct gpt *gpt, struct host_disk *disk, int name);
void host_boot(struct gpt *gpt, struct host_disk *disk, attempt *run, listener *console);
int host_first(const struct host_slot slots[2]);
void host_sha256(const uint8_t *data, size_t size, size_t step, uint8_t digest[32]);
const char *host_image(const uint8_t *header, uint64_t room, uint64_t *offset, uint64_t *region);
const char *host_kernel(const uint8_t *block, uint64_t region, uint64_t *size, uint8_t *digest);
const char *host_load_kernel(struct host_disk *disk, uint64_t first, uint64_t last, uint8_t *to,
                             uint64_t room, uint64_t *size);
int host_version(const uint8_t *image, size_t size, char version[64]);

struct host_disk *host_disk(uint32_t sector_size, uint64_t sectors, transfer *read, transfer *write,
                            settle *flush)
{
    struct host_disk *made = calloc(1, sizeof *made);

    made->disk = (struct disk){sector_size, sectors, host_read, host_write, host_flush};
    made->read = read;
    made->write = write;
    made->flush = flush;
    return made;
}

struct gpt *host_gpt(void)
{
    struct gpt *gpt = aligned_alloc(MAX_SECTOR, sizeof *gpt);

    memset(gpt, 0xa5, sizeof *gpt); /* as memory from firmware: of any content */
    return gpt;
}

void host_free(void *memory)
{
    free(memory);
}

void host_look(struct gpt *gpt, struct host_disk *disk)
{
    gpt_read(gpt, &disk->disk);
}

int host_fault(const struct gpt *gpt, int backup, const char **field, uint32_t *partition)
{
    const struct table *table = backup ? &gpt->now.backup : &gpt->now.primary;

    *field = table->field;
    *partition = table->partition;
    return (int)table->damage;
}

int host_slots(const struct gpt *gpt, struct host_slot slots[2])
{
    const struct table *table;
    struct slot found[2];
    enum refusal refusal = gpt_authoritative(gpt, &table);

    if (!refusal)
        refusal = slots_find(table, found);
    for (unsigned i = 0; !refusal && i < 2; i++)
        slots[i] = (struct host_slot){found[i].number, found[i].first_lba, found[i].last_lba,
                                      found[i].word};
    return (int)refusal;
}

static bool set_words(struct slot slots[2], const void *context)
{
    const uint64_t ours = (uint64_t)0x1ff << 48, *words = context;

    for (unsigned i = 0; i < 2; i++)
        slots[i].word = (slots[i].word & ~ours) | (words[i] & ours);
    return true;
}

int host_set_words(struct gpt *gpt, struct host_disk *disk, const uint64_t words[2])
{
    return (int)slots_change(gpt, &disk->disk, set_words, words);
}

int host_count_down(struct gpt *gpt, struct host_disk *disk, int name)
{
    struct slot slot = {.name = (char)name};

    return (int)slot_count_down(gpt, &disk->disk, &slot);
}

int host_give_up(struct gpt *gpt, struct host_disk *disk, int name)
{
    struct slot slot = {.name = (char)name};

    return (int)slot_give_up(gpt, &disk->disk, &slot);
}

void host_boot(struct gpt *gpt, struct host_disk *disk, attempt *run, listener *console)
{
    struct host_boot host = {
        {gpt, &disk->disk, host_load, host_start, host_say}, run, console
    };

    boot(&host.boot);
}

int host_first(const struct host_slot slots[2])
{
    struct slot order[2] = {
        {.name = 'A', .number = (uint32_t)slots[0].number, .word = slots[0].word},
        {.name = 'B', .number = (uint32_t)slots[1].number, .word = slots[1].word},
    };

    slots_order(order);
    return order[0].name;
}

void host_sha256(const uint8_t *data, size_t size, size_t step, uint8_t digest[32])
{
    struct sha256 hash;

    sha256_begin(&hash);
    for (size_t at = 0; at < size; at += step)
        sha256_more(&hash, data + at, size - at < step ? size - at : step);
    sha256_end(&hash, digest);
}

const char *host_image(const uint8_t *header, uint64_t room, uint64_t *offset, uint64_t *region)
{
    return image_parse(header, room, offset, region);
}

const char *host_kernel(const uint8_t *block, uint64_t region, uint64_t *size, uint8_t *digest)
{
    struct kernel kernel;
    const char *wrong = kernel_parse(block, region, &kernel);

    *size = kernel.size;
    memcpy(digest, kernel.digest, sizeof kernel.digest);
    return wrong;
}

const char *host_load_kernel(struct host_disk *disk, uint64_t first, uint64_t last, uint8_t *to,
                             uint64_t room, uint64_t *size)
{
    const struct slot slot = {.name = 'A', .first_lba = first, .last_lba = last};
    struct kernel kernel;
    uint8_t scratch[BLOCK];
    const char *wrong = kernel_find(&disk->disk, &slot, scratch, &kernel);

    if (wrong)
        return wrong;
    *size = kernel.size;
    if (kernel.size > room)
        return "no room in the test";
    return kernel_read(&disk->disk, &kernel, to);
}

int host_version(const uint8_t *image, size_t size, char version[64])
{
    struct line line = {0};
    bool found = add_version(&line, image, size);

    memcpy(version, line.text, 64);
    return found;
}
