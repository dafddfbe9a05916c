/* Slots. See slot.h for the rules. */
#include "slot.h"

static const uint8_t slot_type[16] = {
    /* 14df45bd-ad68-4deb-ae12-8e00afdd62f4 */
    0xbd, 0x45, 0xdf, 0x14, 0x68, 0xad, 0xeb, 0x4d, 0xae, 0x12, 0x8e, 0x00, 0xaf, 0xdd, 0x62, 0xf4,
};

static bool is_slot(const uint8_t *entry, char name)
{
    const char label[7] = {'R', 'O', 'O', 'T', '-', name, 0};

    for (unsigned i = 0; i < sizeof label; i++)
        if (get16(entry + 56 + 2 * i) != label[i])
            return false;
    return !memcmp(entry, slot_type, sizeof slot_type);
}

static bool find(const struct table *table, struct slot *slot, char name)
{
    unsigned found = 0;

    for (uint32_t number = 1; number <= table->entry_count; number++) {
        const uint8_t *entry = entry_of(table, number);

        if (!is_slot(entry, name))
            continue;
        found++;
        slot->name = name;
        slot->number = number;
        slot->first_lba = entry_first_lba(entry);
        slot->last_lba = entry_last_lba(entry);
        slot->word = entry_attributes(entry);
        memcpy(slot->guid, entry + 16, sizeof slot->guid);
    }
    return found == 1;
}

enum refusal slots_find(const struct table *table, struct slot slots[2])
{
    return find(table, &slots[0], 'A') && find(table, &slots[1], 'B') ? NO_REFUSAL : NO_SLOTS;
}

/* 0 for candidates, 1 for the last resort's successful slots, 2 for the rest. */
static unsigned rank(const struct slot *slot)
{
    return slot_is_candidate(slot) ? 0 : slot_is_successful(slot) ? 1 : 2;
}

static bool goes_before(const struct slot *a, const struct slot *b)
{
    if (rank(a) != rank(b))
        return rank(a) < rank(b);
    if (slot_priority(a) != slot_priority(b))
        return slot_priority(a) > slot_priority(b);
    return a->number < b->number;
}

void slots_order(struct slot slots[2])
{
    if (goes_before(&slots[1], &slots[0])) {
        struct slot first = slots[1];

        slots[1] = slots[0];
        slots[0] = first;
    }
}

enum refusal slots_change(struct gpt *gpt, struct disk *disk, slots_edit *edit,
                          const void *context)
{
    struct slot slots[2];
    struct word words[2];
    enum refusal refusal;

    if (!disk->flush(disk)) /* what is read must survive a power cut now */
        return DISK_FAILED;
    gpt_read(gpt, disk);
    refusal = gpt_plan_repair(gpt, disk);
    if (!refusal)
        refusal = slots_find(&gpt->now.primary, slots);
    if (refusal)
        return refusal;
    if (!edit(slots, context))
        return NO_SUCH_TRIAL;
    for (unsigned i = 0; i < 2; i++) {
        words[i].number = slots[i].number;
        words[i].attributes = slots[i].word;
    }
    refusal = gpt_plan_change(gpt, disk, words);
    return refusal ? refusal : gpt_carry_out(gpt, disk);
}

static void set_tries(struct slot *slot, unsigned tries)
{
    slot->word = (slot->word & ~((uint64_t)15 << 52)) | (uint64_t)tries << 52;
}

static bool count_down(struct slot slots[2], const void *context)
{
    struct slot *slot = &slots[*(const char *)context - 'A'];

    if (!slot_is_on_trial(slot))
        return false;
    set_tries(slot, slot_tries(slot) - 1);
    return true;
}

static bool give_up(struct slot slots[2], const void *context)
{
    set_tries(&slots[*(const char *)context - 'A'], 0);
    return true;
}

enum refusal slot_count_down(struct gpt *gpt, struct disk *disk, struct slot *slot)
{
    enum refusal refusal = slots_change(gpt, disk, count_down, &slot->name);

    if (!refusal)
        set_tries(slot, slot_tries(slot) - 1);
    return refusal;
}

enum refusal slot_give_up(struct gpt *gpt, struct disk *disk, struct slot *slot)
{
    enum refusal refusal = slots_change(gpt, disk, give_up, &slot->name);

    if (!refusal)
        set_tries(slot, 0);
    return refusal;
}
