/* One boot, from the tables to the kernel: in which order slots are tried, and when a try is taken.
 *
 * Knows no firmware: loading, starting and the console are given to it. The rules kept here:
 *
 *  - Each slot is tried once; then it is over, so nothing here can go on for ever.
 *  - A slot on trial loses a try before anything of it is read. A slot that makes the firmware or
 *    the disk hang has thus lost one, and a disk that takes no write starts no slot on trial.
 *  - A candidate that does not load, or whose kernel returns, is given up: tries 0.
 *  - No candidate left: whatever slot still verifies, successful ones first. This writes nothing.
 */
#ifndef BOOT_H
#define BOOT_H

#include "slot.h"

struct boot {
    struct gpt *gpt;
    struct disk *disk;
    /* Load the slot's kernel, verified; NULL, or why it cannot be started. */
    const char *(*load)(struct boot *, const struct slot *);
    /* Start what was loaded; returns only to say why it does not run. */
    const char *(*start)(struct boot *, const struct slot *);
    void (*say)(struct boot *, const char *line);
};

/* Start a slot. Returns only when none could be started. */
void boot(struct boot *boot);

#endif
