/* One boot. See boot.h for the rules. */
#include "boot.h"

static void say(struct boot *boot, struct line *line)
{
    boot->say(boot, line->text);
}

static void add_slot(struct line *line, const struct slot *slot)
{
    const char name[2] = {slot->name, 0};

    add(line, "slot ");
    add(line, name);
}

static void say_slot(struct boot *boot, const struct slot *slot, const char *what, const char *why)
{
    struct line line = {0};

    add_slot(&line, slot);
    add(&line, what);
    add(&line, why);
    say(boot, &line);
}

static void say_flags(struct boot *boot, const struct slot *slot)
{
    struct line line = {0};

    add_slot(&line, slot);
    add(&line, ": priority ");
    add_number(&line, slot_priority(slot));
    add(&line, ", tries ");
    add_number(&line, slot_tries(slot));
    add(&line, slot_is_successful(slot) ? ", successful" : ", not successful");
    say(boot, &line);
}

static void say_refusal(struct boot *boot, const struct slot *slot, const char *what,
                        enum refusal refusal)
{
    struct line line = {0};

    if (slot)
        add_slot(&line, slot);
    add(&line, what);
    add_refusal(&line, boot->gpt, refusal);
    say(boot, &line);
}

static void say_fault(struct boot *boot, const struct table *table)
{
    struct line line = {0};

    if (table->damage == SOUND)
        return;
    add_fault(&line, table);
    say(boot, &line);
}

static bool find_slots(struct boot *boot, struct slot slots[2])
{
    const struct table *table;
    enum refusal refusal;

    boot->disk->flush(boot->disk); /* if it fails, so does every change, and that is told then */
    gpt_read(boot->gpt, boot->disk);
    refusal = gpt_authoritative(boot->gpt, &table);
    if (!refusal)
        refusal = slots_find(table, slots);
    if (refusal) {
        say_refusal(boot, NULL, "no slot can be found: ", refusal);
        return false;
    }
    say_fault(boot, &boot->gpt->now.primary);
    say_fault(boot, &boot->gpt->now.backup);
    return true;
}

static bool count_down(struct boot *boot, struct slot *slot)
{
    enum refusal refusal = slot_count_down(boot->gpt, boot->disk, slot);

    if (refusal)
        say_refusal(boot, slot, " skipped: its try cannot be counted: ", refusal);
    else
        say_flags(boot, slot);
    return !refusal;
}

static void give_up(struct boot *boot, struct slot *slot)
{
    enum refusal refusal = slot_give_up(boot->gpt, boot->disk, slot);

    if (refusal)
        say_refusal(boot, slot, " cannot be given up: ", refusal);
}

/* Returns when the slot does not run. */
static void try(struct boot *boot, struct slot *slot)
{
    bool was_candidate = slot_is_candidate(slot);
    const char *why;

    if (!was_candidate)
        say_slot(boot, slot, " may not boot by its flags: tried as a last resort", "");
    if (slot_is_on_trial(slot) && !count_down(boot, slot))
        return;
    why = boot->load(boot, slot);
    if (!why)
        why = boot->start(boot, slot);
    say_slot(boot, slot, " skipped: ", why);
    if (was_candidate)
        give_up(boot, slot);
}

void boot(struct boot *boot)
{
    struct slot slots[2];

    if (!find_slots(boot, slots))
        return;
    for (unsigned i = 0; i < 2; i++)
        say_flags(boot, &slots[i]);
    slots_order(slots);
    for (unsigned i = 0; i < 2; i++)
        try(boot, &slots[i]);
}
