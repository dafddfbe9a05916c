/* Slots, their boot flags, and the boot rule. The C twin of update_agent/core/slot.py.
 *
 * A slot is a partition of our type labelled ROOT-A or ROOT-B. Its flags live in its attribute word:
 *
 *     bits 48-51  priority     0 means never boot
 *     bits 52-55  tries        boots left before an unconfirmed slot is given up
 *     bit  56     successful   this slot was confirmed
 *
 * The rules kept here: only tries is ever changed, and it never goes up. All other bits of the word,
 * and all other entries, are kept.
 */
#ifndef SLOT_H
#define SLOT_H

#include "gpt.h"

struct slot {
    char name; /* 'A' or 'B' */
    uint32_t number;
    uint64_t first_lba, last_lba;
    uint8_t guid[16];
    uint64_t word;
};

static inline unsigned slot_priority(const struct slot *slot)
{
    return slot->word >> 48 & 15;
}

static inline unsigned slot_tries(const struct slot *slot)
{
    return slot->word >> 52 & 15;
}

static inline bool slot_is_successful(const struct slot *slot)
{
    return slot->word >> 56 & 1;
}

static inline bool slot_is_candidate(const struct slot *slot)
{
    return slot_priority(slot) && (slot_is_successful(slot) || slot_tries(slot));
}

static inline bool slot_is_on_trial(const struct slot *slot)
{
    return slot_is_candidate(slot) && !slot_is_successful(slot);
}

/* Find slot A and slot B in a table. */
enum refusal slots_find(const struct table *table, struct slot slots[2]);

/* Put first the one to be tried first: candidates by priority, a tie to the lowest partition; then
 * the last resort, successful ones first. */
void slots_order(struct slot slots[2]);

/* What an edit does to the slots, A and B, as they stand on the disk; false is a refusal. */
typedef bool slots_edit(struct slot slots[2], const void *context);

/* Change the slots' words on the disk, as gpt.h says: repair, then the change. */
enum refusal slots_change(struct gpt *gpt, struct disk *disk, slots_edit *edit,
                          const void *context);

/* Take a try from a slot on trial; refused when it has none. `slot` is updated. */
enum refusal slot_count_down(struct gpt *gpt, struct disk *disk, struct slot *slot);

/* Take all tries from a slot. `slot` is updated. */
enum refusal slot_give_up(struct gpt *gpt, struct disk *disk, struct slot *slot);

#endif
