/* GUID partition tables: reading, judging, repairing and changing them. The C twin of
 * update_agent/core/gpt.py and update_agent/host/disk.py; tests hold the two against each other.
 *
 * A disk carries two copies of its table, each a header (one sector) and an array of 128-byte
 * entries (UEFI 2.10, section 5.3). The rules kept here:
 *
 *  - A copy is used only when every field of it validated. DAMAGED is what firmware refuses too:
 *    the other copy then counts. MALFORMED has good checksums and breaks a rule: nothing is written.
 *  - Nothing is written to an address from a header that did not validate, and LBA 0 never.
 *  - A change goes in phases, each flushed and read back before the next: backup array and header;
 *    the primary's array in the place not in use; the primary's header, one sector, the commit.
 *  - All is planned, and may be refused, before the first write. After an error nothing is written.
 */
#ifndef GPT_H
#define GPT_H

#include "bytes.h"

enum {
    MAX_SECTOR = 4096,
    MIN_SECTORS = 6, /* an MBR, two headers, two arrays, and something between them */
    ENTRY_SIZE = 128,
    MAX_ENTRIES = 1024,
    MAX_ARRAY = MAX_ENTRIES * ENTRY_SIZE,
};

/* What a table needs of a disk, and no more. Whole sectors; false is an error. */
struct disk {
    uint32_t sector_size; /* 512 or 4096 */
    uint64_t sectors;     /* at least MIN_SECTORS */
    bool (*read)(struct disk *, uint64_t lba, uint64_t count, void *to);
    bool (*write)(struct disk *, uint64_t lba, uint64_t count, const void *from);
    bool (*flush)(struct disk *); /* everything written before is on the medium */
};

enum copy { PRIMARY, BACKUP };
enum damage { SOUND, DAMAGED, MALFORMED, FOREIGN };
enum mbr { PROTECTIVE, MISSING, HYBRID };

struct table {
    /* Firmware may want buffers aligned to as much as a sector. */
    _Alignas(MAX_SECTOR) uint8_t sector[MAX_SECTOR]; /* as found: unknown bytes in it are kept */
    _Alignas(MAX_SECTOR) uint8_t array[MAX_ARRAY];   /* all entries as found, and zeros */
    enum copy copy;
    enum damage damage;
    const char *field;  /* what is wrong, unless SOUND */
    uint32_t partition; /* in which entry, counted from 1, or 0 */
    uint64_t lba, alternate_lba, first_usable, last_usable, entries_lba;
    uint32_t entry_count;
};

struct tables {
    struct table primary, backup;
    enum mbr mbr;
};

/* Why nothing, or no more, was done. */
enum refusal {
    NO_REFUSAL,
    PRIMARY_REFUSED, /* malformed, or another system's */
    BACKUP_REFUSED,  /* another system's */
    BOTH_DAMAGED,
    NO_MBR, /* only a backup is left, and the MBR does not speak of a GPT */
    NO_ROOM,
    NO_SLOTS,
    NO_SUCH_TRIAL,
    DISK_FAILED,
    NOT_HELD, /* the disk does not hold what was written */
};

/* What to do to make both copies valid, equal, and the backup stand at the disk's end. */
enum repair { NO_REPAIR, WRITE_PRIMARY, WRITE_BACKUP, MOVE_BACKUP };

/* Room to work in; three quarters of a MiB. */
struct gpt {
    struct tables now;     /* as read; once a change is planned, as its repair will leave them */
    struct tables changed; /* as the change will leave them */
    struct tables seen;    /* as read back */
    enum repair repair;
    bool change;
};

struct word {
    uint32_t number; /* of the partition, from 1 */
    uint64_t attributes;
};

static inline const uint8_t *entry_of(const struct table *table, uint32_t number)
{
    return table->array + (size_t)(number - 1) * ENTRY_SIZE;
}

bool entry_is_used(const uint8_t *entry);

static inline uint64_t entry_first_lba(const uint8_t *entry)
{
    return get64(entry + 32);
}

static inline uint64_t entry_last_lba(const uint8_t *entry)
{
    return get64(entry + 40);
}

static inline uint64_t entry_attributes(const uint8_t *entry)
{
    return get64(entry + 48);
}

/* Read both copies into `now`. */
void gpt_read(struct gpt *gpt, struct disk *disk);

/* Point `table` to the copy of `now` that counts: the primary if it is valid, else the backup. */
enum refusal gpt_authoritative(const struct gpt *gpt, const struct table **table);

/* Plan the repair of `now`, and turn it into what the repair will leave: sound, so that the
 * primary counts. A sound disk needs none. */
enum refusal gpt_plan_repair(struct gpt *gpt, const struct disk *disk);

/* Plan, behind the repair, to replace two attribute words and no other bit. */
enum refusal gpt_plan_change(struct gpt *gpt, const struct disk *disk, const struct word words[2]);

/* Do what was planned. */
enum refusal gpt_carry_out(struct gpt *gpt, struct disk *disk);

/* Say why in words; for the refusals that are about a field of `now`, which one. */
void add_refusal(struct line *line, const struct gpt *gpt, enum refusal refusal);
void add_fault(struct line *line, const struct table *table);

#endif
