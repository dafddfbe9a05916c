/* GUID partition tables. See gpt.h for the rules. */
#include "gpt.h"

enum { PRIMARY_LBA = 1, HOME = 2, HEADER_SIZE = 92 };

/* Bytes in a header and in an entry (UEFI 2.10, tables 5.5 and 5.6). */
enum {
    REVISION = 8,
    SIZE = 12,
    CRC = 16,
    MY_LBA = 24,
    ALTERNATE_LBA = 32,
    FIRST_USABLE = 40,
    LAST_USABLE = 48,
    DISK_GUID = 56,
    ENTRIES_LBA = 72,
    ENTRY_COUNT = 80,
    SIZE_OF_ENTRY = 84,
    ENTRIES_CRC = 88,
    PARTITION_GUID = 16,
    ATTRIBUTES = 48,
};

static uint64_t last_lba(const struct disk *disk)
{
    return disk->sectors - 1;
}

static size_t array_size(const struct table *table)
{
    return (size_t)table->entry_count * ENTRY_SIZE;
}

static uint64_t array_sectors(const struct table *table, const struct disk *disk)
{
    return (array_size(table) + disk->sector_size - 1) / disk->sector_size;
}

/* Reading ------------------------------------------------------------------------------------- */

static bool fail(struct table *table, enum damage damage, const char *field)
{
    table->damage = damage;
    table->field = field;
    return false;
}

static bool check_identity(struct table *table, const struct disk *disk, uint64_t lba)
{
    const uint8_t *sector = table->sector;
    uint32_t size = get32(sector + SIZE);

    if (!memcmp(sector, "CHROMEOS", 8) || !memcmp(sector, "IGNOREME", 8))
        return fail(table, FOREIGN, "signature");
    if (memcmp(sector, "EFI PART", 8))
        return fail(table, DAMAGED, "signature");
    if (size < HEADER_SIZE || size > disk->sector_size)
        return fail(table, DAMAGED, "HeaderSize");
    if (get32(sector + CRC) != crc32_without(sector, size, CRC))
        return fail(table, DAMAGED, "HeaderCRC32");
    if (get64(sector + MY_LBA) != lba)
        return fail(table, DAMAGED, "MyLBA");
    return true;
}

static void decode(struct table *table)
{
    const uint8_t *sector = table->sector;

    table->lba = get64(sector + MY_LBA);
    table->alternate_lba = get64(sector + ALTERNATE_LBA);
    table->first_usable = get64(sector + FIRST_USABLE);
    table->last_usable = get64(sector + LAST_USABLE);
    table->entries_lba = get64(sector + ENTRIES_LBA);
    table->entry_count = get32(sector + ENTRY_COUNT);
}

/* After this, the place of the array is safe to read. No sum below can overflow: each is of
 * numbers that were checked before it. */
static bool check_places(struct table *table, const struct disk *disk)
{
    bool primary = table->copy == PRIMARY;
    uint64_t backup_lba = primary ? table->alternate_lba : table->lba;
    uint64_t sectors = array_sectors(table, disk);
    uint64_t lowest = HOME + sectors;
    uint64_t begin, end; /* between which the array stands */

    if (primary ? backup_lba <= table->lba || backup_lba > last_lba(disk)
                : table->alternate_lba != PRIMARY_LBA)
        return fail(table, MALFORMED, "AlternateLBA");
    if (table->last_usable < lowest || backup_lba < sectors + 1 ||
        table->last_usable > backup_lba - sectors - 1)
        return fail(table, MALFORMED, "LastUsableLBA");
    if (table->first_usable < lowest || table->first_usable > table->last_usable)
        return fail(table, MALFORMED, "FirstUsableLBA");
    begin = primary ? HOME : table->last_usable + 1;
    end = primary ? table->first_usable : table->lba;
    if (table->entries_lba < begin || table->entries_lba > end - sectors)
        return fail(table, MALFORMED, "PartitionEntryLBA");
    return true;
}

static bool check_header(struct table *table, const struct disk *disk, uint64_t lba)
{
    if (!check_identity(table, disk, lba))
        return false;
    decode(table);
    if (get32(table->sector + REVISION) != 0x00010000)
        return fail(table, MALFORMED, "Revision");
    if (get32(table->sector + SIZE_OF_ENTRY) != ENTRY_SIZE)
        return fail(table, MALFORMED, "SizeOfPartitionEntry");
    if (table->entry_count < 1 || table->entry_count > MAX_ENTRIES)
        return fail(table, MALFORMED, "NumberOfPartitionEntries");
    return check_places(table, disk);
}

bool entry_is_used(const uint8_t *entry)
{
    return get64(entry) || get64(entry + 8);
}

static bool fail_entry(struct table *table, uint32_t number, const char *field)
{
    table->partition = number;
    return fail(table, MALFORMED, field);
}

static bool check_bounds(struct table *table)
{
    for (uint32_t number = 1; number <= table->entry_count; number++) {
        const uint8_t *entry = entry_of(table, number);
        uint64_t first = entry_first_lba(entry), last = entry_last_lba(entry);

        if (!entry_is_used(entry))
            continue;
        if (first < table->first_usable || first > table->last_usable)
            return fail_entry(table, number, "StartingLBA");
        if (last < first || last > table->last_usable)
            return fail_entry(table, number, "EndingLBA");
    }
    return true;
}

/* Whether entry `a` begins before `b`; of two that begin together, the first in the array does. */
static bool begins_before(const struct table *table, uint32_t a, uint32_t b)
{
    uint64_t first_a = entry_first_lba(entry_of(table, a));
    uint64_t first_b = entry_first_lba(entry_of(table, b));

    return first_a < first_b || (first_a == first_b && a < b);
}

/* The used entry that begins next after `number`, or first of all for 0; 0 when there is none. */
static uint32_t next_on_disk(const struct table *table, uint32_t number)
{
    uint32_t next = 0;

    for (uint32_t other = 1; other <= table->entry_count; other++)
        if (entry_is_used(entry_of(table, other)) &&
            (!number || begins_before(table, number, other)) &&
            (!next || begins_before(table, other, next)))
            next = other;
    return next;
}

static bool check_overlaps(struct table *table)
{
    uint32_t below = next_on_disk(table, 0), above;

    for (; below && (above = next_on_disk(table, below)); below = above)
        if (entry_first_lba(entry_of(table, above)) <= entry_last_lba(entry_of(table, below)))
            return fail_entry(table, above, "StartingLBA");
    return true;
}

static bool check_guids(struct table *table)
{
    for (uint32_t number = 2; number <= table->entry_count; number++)
        for (uint32_t other = 1; other < number; other++) {
            const uint8_t *a = entry_of(table, number), *b = entry_of(table, other);

            if (entry_is_used(a) && entry_is_used(b) &&
                !memcmp(a + PARTITION_GUID, b + PARTITION_GUID, 16))
                return fail_entry(table, number, "UniquePartitionGUID");
        }
    return true;
}

static bool check_array(struct table *table)
{
    if (crc32_more(0, table->array, array_size(table)) != get32(table->sector + ENTRIES_CRC))
        return fail(table, DAMAGED, "PartitionEntryArrayCRC32");
    return check_bounds(table) && check_overlaps(table) && check_guids(table);
}

static void read_copy(struct table *table, struct disk *disk, enum copy copy, uint64_t lba)
{
    memset(table, 0, sizeof *table);
    table->copy = copy;
    if (!disk->read(disk, lba, 1, table->sector)) {
        fail(table, DAMAGED, "its content");
        return;
    }
    if (!check_header(table, disk, lba))
        return;
    if (!disk->read(disk, table->entries_lba, array_sectors(table, disk), table->array)) {
        fail(table, DAMAGED, "its content");
        return;
    }
    memset(table->array + array_size(table), 0, MAX_ARRAY - array_size(table));
    check_array(table);
}

static enum mbr read_mbr(struct disk *disk, uint8_t *sector)
{
    bool protective = false, others = false;

    if (!disk->read(disk, 0, 1, sector) || sector[510] != 0x55 || sector[511] != 0xaa)
        return MISSING;
    for (unsigned at = 446; at < 510; at += 16) {
        protective |= sector[at + 4] == 0xee;
        others |= sector[at + 4] != 0xee && sector[at + 4] != 0;
    }
    return !protective ? MISSING : others ? HYBRID : PROTECTIVE;
}

static void read_tables(struct tables *tables, struct disk *disk)
{
    uint64_t backup_lba;

    tables->mbr = read_mbr(disk, tables->backup.sector);
    read_copy(&tables->primary, disk, PRIMARY, PRIMARY_LBA);
    backup_lba = tables->primary.damage == SOUND ? tables->primary.alternate_lba : last_lba(disk);
    read_copy(&tables->backup, disk, BACKUP, backup_lba);
}

void gpt_read(struct gpt *gpt, struct disk *disk)
{
    gpt->repair = NO_REPAIR;
    gpt->change = false;
    read_tables(&gpt->now, disk);
}

enum refusal gpt_authoritative(const struct gpt *gpt, const struct table **table)
{
    const struct tables *now = &gpt->now;

    *table = now->primary.damage == SOUND ? &now->primary : &now->backup;
    if (now->primary.damage == SOUND)
        return NO_REFUSAL;
    if (now->primary.damage != DAMAGED)
        return PRIMARY_REFUSED;
    if (now->backup.damage != SOUND)
        return BOTH_DAMAGED;
    return now->mbr == MISSING ? NO_MBR : NO_REFUSAL;
}

/* Planning ------------------------------------------------------------------------------------ */

static bool say_the_same(const struct table *a, const struct table *b)
{
    return a->first_usable == b->first_usable && a->last_usable == b->last_usable &&
           a->entry_count == b->entry_count &&
           !memcmp(a->sector + DISK_GUID, b->sector + DISK_GUID, 16) &&
           !memcmp(a->array, b->array, array_size(a));
}

static bool are_sound(const struct tables *tables, const struct disk *disk)
{
    return tables->primary.damage == SOUND && tables->backup.damage == SOUND &&
           say_the_same(&tables->primary, &tables->backup) &&
           tables->backup.lba == last_lba(disk);
}

/* Make the header's sector say what the table says. */
static void encode(struct table *table)
{
    uint8_t *sector = table->sector;
    uint32_t size = get32(sector + SIZE);

    put64(sector + MY_LBA, table->lba);
    put64(sector + ALTERNATE_LBA, table->alternate_lba);
    put64(sector + FIRST_USABLE, table->first_usable);
    put64(sector + LAST_USABLE, table->last_usable);
    put64(sector + ENTRIES_LBA, table->entries_lba);
    put32(sector + ENTRY_COUNT, table->entry_count);
    put32(sector + ENTRIES_CRC, crc32_more(0, table->array, array_size(table)));
    put32(sector + CRC, crc32_without(sector, size, CRC));
}

/* Turn `table` into a primary copy whose array stands at `entries_lba`, in free sectors. */
static enum refusal become_primary(struct table *table, const struct disk *disk,
                                   uint64_t entries_lba)
{
    uint64_t end = entries_lba + array_sectors(table, disk);

    if (table->copy == PRIMARY && table->entries_lba > entries_lba)
        end = table->entries_lba + array_sectors(table, disk);
    for (uint32_t number = 1; number <= table->entry_count; number++) {
        const uint8_t *entry = entry_of(table, number);

        if (entry_is_used(entry) && entry_first_lba(entry) < end)
            return NO_ROOM;
    }
    table->copy = PRIMARY;
    table->lba = PRIMARY_LBA;
    table->alternate_lba = last_lba(disk);
    table->entries_lba = entries_lba;
    if (table->first_usable < end)
        table->first_usable = end;
    encode(table);
    return NO_REFUSAL;
}

/* Turn `table` into a backup copy, its array right before the header in the last sector. */
static enum refusal become_backup(struct table *table, const struct disk *disk)
{
    uint64_t entries_lba = last_lba(disk) - array_sectors(table, disk);

    if (table->last_usable < table->first_usable || table->last_usable >= entries_lba)
        return NO_ROOM;
    table->copy = BACKUP;
    table->lba = last_lba(disk);
    table->alternate_lba = PRIMARY_LBA;
    table->entries_lba = entries_lba;
    encode(table);
    return NO_REFUSAL;
}

enum refusal gpt_plan_repair(struct gpt *gpt, const struct disk *disk)
{
    struct tables *now = &gpt->now;
    const struct table *good;
    enum refusal refusal = gpt_authoritative(gpt, &good);
    bool in_place;

    if (refusal)
        return refusal;
    if (now->backup.damage == FOREIGN)
        return BACKUP_REFUSED;
    if (are_sound(now, disk))
        return NO_REFUSAL;
    if (good->copy == BACKUP) {
        gpt->repair = WRITE_PRIMARY;
        now->primary = now->backup;
        return become_primary(&now->primary, disk, HOME);
    }
    in_place = now->primary.alternate_lba == last_lba(disk);
    gpt->repair = in_place ? WRITE_BACKUP : MOVE_BACKUP;
    now->backup = now->primary;
    refusal = become_backup(&now->backup, disk);
    if (refusal || in_place)
        return refusal;
    return become_primary(&now->primary, disk, now->primary.entries_lba);
}

/* Where the next primary array goes: behind the header, or behind the one in use. */
static uint64_t spare_place(const struct table *primary, const struct disk *disk)
{
    uint64_t sectors = array_sectors(primary, disk);

    return primary->entries_lba >= HOME + sectors ? HOME : primary->entries_lba + sectors;
}

enum refusal gpt_plan_change(struct gpt *gpt, const struct disk *disk, const struct word words[2])
{
    struct table *primary = &gpt->changed.primary, *backup = &gpt->changed.backup;
    enum refusal refusal;

    gpt->changed = gpt->now;
    for (unsigned i = 0; i < 2; i++)
        put64(primary->array + (size_t)(words[i].number - 1) * ENTRY_SIZE + ATTRIBUTES,
              words[i].attributes);
    gpt->change = memcmp(primary->array, gpt->now.primary.array, MAX_ARRAY) != 0;
    if (!gpt->change)
        return NO_REFUSAL;
    refusal = become_primary(primary, disk, spare_place(primary, disk));
    if (refusal)
        return refusal;
    memcpy(backup->array, primary->array, MAX_ARRAY);
    backup->first_usable = primary->first_usable;
    return become_backup(backup, disk);
}

/* Writing ------------------------------------------------------------------------------------- */

static bool write_array(const struct table *table, struct disk *disk)
{
    return disk->write(disk, table->entries_lba, array_sectors(table, disk), table->array);
}

static bool write_header(const struct table *table, struct disk *disk)
{
    return disk->write(disk, table->lba, 1, table->sector);
}

static enum refusal read_back(struct gpt *gpt, struct disk *disk, uint64_t lba, uint64_t count,
                              const uint8_t *wanted)
{
    uint8_t *found = gpt->seen.primary.array;

    if (!disk->read(disk, lba, count, found))
        return DISK_FAILED;
    return memcmp(found, wanted, count * disk->sector_size) ? NOT_HELD : NO_REFUSAL;
}

/* One phase: when it returns well, the array or the header or both are on the medium. */
static enum refusal put(struct gpt *gpt, struct disk *disk, const struct table *array,
                        const struct table *header)
{
    enum refusal of_array = NO_REFUSAL, of_header = NO_REFUSAL;

    if (array && !write_array(array, disk))
        return DISK_FAILED;
    if (header && !write_header(header, disk))
        return DISK_FAILED;
    if (!disk->flush(disk))
        return DISK_FAILED;
    if (array)
        of_array = read_back(gpt, disk, array->entries_lba, array_sectors(array, disk),
                             array->array);
    if (header && of_array != DISK_FAILED)
        of_header = read_back(gpt, disk, header->lba, 1, header->sector);
    return of_header == DISK_FAILED || !of_array ? of_header : of_array;
}

static bool stand_there(const struct table *seen, const struct table *wanted,
                        const struct disk *disk)
{
    return seen->damage == SOUND && !memcmp(seen->sector, wanted->sector, disk->sector_size) &&
           !memcmp(seen->array, wanted->array, MAX_ARRAY);
}

static enum refusal look_again(struct gpt *gpt, struct disk *disk, const struct tables *wanted)
{
    read_tables(&gpt->seen, disk);
    if (stand_there(&gpt->seen.primary, &wanted->primary, disk) &&
        stand_there(&gpt->seen.backup, &wanted->backup, disk) && gpt->seen.mbr == wanted->mbr)
        return NO_REFUSAL;
    return NOT_HELD;
}

static enum refusal carry_out_repair(struct gpt *gpt, struct disk *disk)
{
    const struct table *primary = &gpt->now.primary, *backup = &gpt->now.backup;
    enum refusal refusal = NO_REFUSAL;

    if (gpt->repair == NO_REPAIR)
        return NO_REFUSAL;
    if (gpt->repair == WRITE_PRIMARY)
        refusal = put(gpt, disk, primary, NULL);
    else
        refusal = put(gpt, disk, backup, backup);
    if (!refusal && gpt->repair != WRITE_BACKUP)
        refusal = put(gpt, disk, NULL, primary);
    return refusal ? refusal : look_again(gpt, disk, &gpt->now);
}

static enum refusal carry_out_change(struct gpt *gpt, struct disk *disk)
{
    const struct table *primary = &gpt->changed.primary, *backup = &gpt->changed.backup;
    enum refusal refusal;

    if (!gpt->change)
        return NO_REFUSAL;
    refusal = put(gpt, disk, backup, backup);
    if (!refusal)
        refusal = put(gpt, disk, primary, NULL);
    if (!refusal)
        refusal = put(gpt, disk, NULL, primary);
    return refusal ? refusal : look_again(gpt, disk, &gpt->changed);
}

enum refusal gpt_carry_out(struct gpt *gpt, struct disk *disk)
{
    enum refusal refusal = carry_out_repair(gpt, disk);

    return refusal ? refusal : carry_out_change(gpt, disk);
}

/* Words --------------------------------------------------------------------------------------- */

void add_fault(struct line *line, const struct table *table)
{
    static const char *const damages[] = {"sound", "damaged", "malformed", "foreign"};

    add(line, table->copy == PRIMARY ? "primary" : "backup");
    add(line, " partition table is ");
    add(line, damages[table->damage]);
    if (table->damage == SOUND)
        return;
    add(line, " (");
    if (table->partition) {
        add(line, "partition ");
        add_number(line, table->partition);
        add(line, " ");
    }
    add(line, table->field);
    add(line, ")");
}

void add_refusal(struct line *line, const struct gpt *gpt, enum refusal refusal)
{
    static const char *const words[] = {
        [NO_REFUSAL] = "nothing is wrong",
        [BOTH_DAMAGED] = "; ",
        [NO_MBR] = "the MBR does not speak of a GPT, and the ",
        [NO_ROOM] = "no room for a second array of entries before the first partition",
        [NO_SLOTS] = "the disk has not exactly one ROOT-A and one ROOT-B of the slot type",
        [NO_SUCH_TRIAL] = "the slot is not on trial any more",
        [DISK_FAILED] = "the disk refused a write, a flush or a read",
        [NOT_HELD] = "the disk does not hold what was written",
    };

    if (refusal == BACKUP_REFUSED) {
        add_fault(line, &gpt->now.backup);
        return;
    }
    if (refusal == PRIMARY_REFUSED || refusal == BOTH_DAMAGED)
        add_fault(line, &gpt->now.primary);
    if (words[refusal])
        add(line, words[refusal]);
    if (refusal == NO_MBR)
        add_fault(line, &gpt->now.primary);
    if (refusal == BOTH_DAMAGED)
        add_fault(line, &gpt->now.backup);
}
