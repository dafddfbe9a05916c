/* gptprio.efi: what of the selector knows the firmware.
 *
 * The rules kept here:
 *
 *  - The disk is the parent, by device path, of the partition this program was loaded from; no other
 *    disk is read, written or searched, whatever GUIDs it has.
 *  - A kernel is loaded from memory, after its SHA-256 was right, through LoadImage, so that Secure
 *    Boot has its say; its device handle is its slot's partition.
 *  - The watchdog is armed until the kernel calls ExitBootServices.
 *  - When nothing can be started: a message, 30 s, reset. No variable is read or written.
 */
#include <efi.h>

#include "boot.h"
#include "image.h"

#ifndef WATCHDOG_SECONDS
#define WATCHDOG_SECONDS 300
#endif

enum { LAST_RESORT_SECONDS = 30, WATCHDOG_CODE = 0x10055, MAX_PATH = 1024 };

static EFI_SYSTEM_TABLE *st;
static EFI_BOOT_SERVICES *bs;
static EFI_HANDLE self;

/* Console ------------------------------------------------------------------------------------- */

static void say(struct boot *boot, const char *text)
{
    CHAR16 wide[2] = {0, 0};
    struct line line = {0};

    (void)boot;
    if (!st->ConOut)
        return;
    add(&line, "gptprio: ");
    add(&line, text);
    for (const char *at = line.text; *at; at++) {
        wide[0] = (CHAR16)*at;
        st->ConOut->OutputString(st->ConOut, wide);
    }
    st->ConOut->OutputString(st->ConOut, L"\r\n");
}

/* Device paths -------------------------------------------------------------------------------- */

static size_t node_length(const uint8_t *node)
{
    return get16(node + 2);
}

static bool is_end(const uint8_t *node)
{
    return (node[0] & 0x7f) == END_DEVICE_PATH_TYPE || node_length(node) < 4;
}

/* Bytes of a path before its end. */
static size_t path_length(const uint8_t *path)
{
    size_t length = 0;

    while (!is_end(path + length))
        length += node_length(path + length);
    return length;
}

/* Bytes of a path before its last node, if that is a GPT partition; else 0. */
static size_t parent_length(const uint8_t *path)
{
    size_t length = path_length(path), last = 0, at;

    for (at = 0; at < length; at += node_length(path + at))
        last = at;
    if (length - last < 42 || path[last] != MEDIA_DEVICE_PATH ||
        path[last + 1] != MEDIA_HARDDRIVE_DP || path[last + 41] != SIGNATURE_TYPE_GUID)
        return 0;
    return last;
}

static const uint8_t *path_of(EFI_HANDLE handle)
{
    static EFI_GUID guid = DEVICE_PATH_PROTOCOL;
    void *path = NULL;

    return EFI_ERROR(bs->HandleProtocol(handle, &guid, &path)) ? NULL : path;
}

static EFI_BLOCK_IO *block_io_of(EFI_HANDLE handle)
{
    static EFI_GUID guid = BLOCK_IO_PROTOCOL;
    void *io = NULL;

    return EFI_ERROR(bs->HandleProtocol(handle, &guid, &io)) ? NULL : io;
}

/* Whether `path` is the disk itself, or the partition of the disk that `slot` is. */
static bool is_wanted(const uint8_t *path, const uint8_t *disk, size_t length,
                      const struct slot *slot)
{
    const uint8_t *node = path + length;

    if (!slot)
        return path_length(path) == length && !memcmp(path, disk, length);
    return parent_length(path) == length && !memcmp(path, disk, length) &&
           get64(node + 8) == slot->first_lba &&
           get64(node + 16) == slot->last_lba - slot->first_lba + 1 &&
           !memcmp(node + 24, slot->guid, sizeof slot->guid);
}

/* Return the handle of the disk whose path is the first `length` bytes of `disk`, or of its
 * partition `slot`; NULL when the firmware has none. */
static EFI_HANDLE find_handle(const uint8_t *disk, size_t length, const struct slot *slot)
{
    static EFI_GUID guid = BLOCK_IO_PROTOCOL;
    EFI_HANDLE *handles = NULL, found = NULL;
    UINTN count = 0;

    if (EFI_ERROR(bs->LocateHandleBuffer(ByProtocol, &guid, NULL, &count, &handles)))
        return NULL;
    for (UINTN i = 0; i < count && !found; i++) {
        const uint8_t *path = path_of(handles[i]);

        if (path && is_wanted(path, disk, length, slot))
            found = handles[i];
    }
    bs->FreePool(handles);
    return found;
}

/* The disk ------------------------------------------------------------------------------------ */

struct efi_disk {
    struct disk disk;
    EFI_BLOCK_IO *io;
    const uint8_t *path; /* of the partition we were loaded from */
    size_t path_length;  /* of its disk */
};

static bool is_within(const struct disk *disk, uint64_t lba, uint64_t count)
{
    return lba < disk->sectors && count <= disk->sectors - lba;
}

static bool efi_read(struct disk *disk, uint64_t lba, uint64_t count, void *to)
{
    EFI_BLOCK_IO *io = ((struct efi_disk *)disk)->io;

    return is_within(disk, lba, count) &&
           !EFI_ERROR(io->ReadBlocks(io, io->Media->MediaId, lba, count * disk->sector_size, to));
}

#ifdef STOP_FOR_TESTS
/* Stand still before the operation whose number the test has written behind the mark. */
static void stop(void)
{
    static volatile uint8_t mark[] = "STOP-AT:";
    static unsigned operations;

    if (operations++ != mark[8])
        return;
    say(NULL, "stopped");
    for (;;)
        __asm__ volatile("pause");
}
#else
#define stop()
#endif

static bool efi_write(struct disk *disk, uint64_t lba, uint64_t count, const void *from)
{
    EFI_BLOCK_IO *io = ((struct efi_disk *)disk)->io;

    stop();
    return lba > 0 && is_within(disk, lba, count) &&
           !EFI_ERROR(io->WriteBlocks(io, io->Media->MediaId, lba, count * disk->sector_size,
                                      (void *)(uintptr_t)from));
}

static bool efi_flush(struct disk *disk)
{
    EFI_BLOCK_IO *io = ((struct efi_disk *)disk)->io;

    stop();
    return !EFI_ERROR(io->FlushBlocks(io));
}

static const char *find_disk(struct efi_disk *disk, EFI_HANDLE partition)
{
    EFI_HANDLE handle;

    disk->path = path_of(partition);
    disk->path_length = disk->path ? parent_length(disk->path) : 0;
    if (!disk->path_length)
        return "not loaded from a partition of a GPT";
    handle = find_handle(disk->path, disk->path_length, NULL);
    disk->io = handle ? block_io_of(handle) : NULL;
    if (!disk->io || disk->io->Media->LogicalPartition || !disk->io->Media->MediaPresent)
        return "the disk of the partition it was loaded from is not there";
    if (disk->io->Media->BlockSize != 512 && disk->io->Media->BlockSize != 4096)
        return "the disk has sectors of neither 512 nor 4096 bytes";
    if (disk->io->Media->LastBlock < MIN_SECTORS - 1)
        return "the disk is too small for a partition table";
    disk->disk.sector_size = disk->io->Media->BlockSize;
    disk->disk.sectors = disk->io->Media->LastBlock + 1;
    disk->disk.read = efi_read;
    disk->disk.write = efi_write;
    disk->disk.flush = efi_flush;
    return NULL;
}

/* Kernels ------------------------------------------------------------------------------------- */

struct efi_boot {
    struct boot boot;
    struct efi_disk disk;
    EFI_HANDLE kernel;
};

static uint8_t *allocate(uint64_t size)
{
    EFI_PHYSICAL_ADDRESS at = 0;
    EFI_STATUS status =
        bs->AllocatePages(AllocateAnyPages, EfiLoaderData, (size + BLOCK - 1) / BLOCK, &at);

    return EFI_ERROR(status) ? NULL : (uint8_t *)at;
}

static void release(uint8_t *pages, uint64_t size)
{
    bs->FreePages((EFI_PHYSICAL_ADDRESS)pages, (size + BLOCK - 1) / BLOCK);
}

static void say_version(const struct slot *slot, const uint8_t *image, size_t size)
{
    struct line line = {0};
    const char name[2] = {slot->name, 0};

    add(&line, "slot ");
    add(&line, name);
    add(&line, ": kernel verified, version ");
    if (!add_version(&line, image, size))
        add(&line, "unknown");
    say(NULL, line.text);
}

/* Hand a verified kernel to the firmware, as one that came from the slot's partition. */
static const char *load_image(struct efi_boot *boot, const struct slot *slot, uint8_t *image,
                              size_t size)
{
    static EFI_GUID guid = LOADED_IMAGE_PROTOCOL;
    EFI_HANDLE partition = find_handle(boot->disk.path, boot->disk.path_length, slot);
    EFI_LOADED_IMAGE *loaded = NULL;
    EFI_STATUS status;

    if (!partition)
        return "the firmware does not know its partition";
    boot->kernel = NULL;
    status = bs->LoadImage(FALSE, self, (EFI_DEVICE_PATH *)(uintptr_t)path_of(partition), image,
                           size, &boot->kernel);
    if (!EFI_ERROR(status))
        status = bs->HandleProtocol(boot->kernel, &guid, (void **)&loaded);
    if (!EFI_ERROR(status)) {
        loaded->DeviceHandle = partition;
        return NULL;
    }
    if (boot->kernel)
        bs->UnloadImage(boot->kernel);
    if (status == EFI_SECURITY_VIOLATION || status == EFI_ACCESS_DENIED)
        return "kernel: refused by Secure Boot";
    return "kernel: the firmware cannot load it";
}

static const char *load_verified(struct efi_boot *boot, const struct slot *slot,
                                 const struct kernel *kernel, uint8_t *image)
{
    const char *wrong = kernel_read(&boot->disk.disk, kernel, image);

    if (wrong)
        return wrong;
    say_version(slot, image, kernel->size);
    return load_image(boot, slot, image, kernel->size);
}

static const char *load(struct boot *boot, const struct slot *slot)
{
    struct efi_boot *efi = (struct efi_boot *)boot;
    struct kernel kernel;
    uint8_t *image;
    const char *wrong = kernel_find(boot->disk, slot, boot->gpt->seen.primary.array, &kernel);

    if (wrong)
        return wrong;
    image = allocate(kernel.size);
    if (!image)
        return "kernel: not enough memory";
    wrong = load_verified(efi, slot, &kernel, image);
    release(image, kernel.size);
    return wrong;
}

static void arm_watchdog(void)
{
    bs->SetWatchdogTimer(WATCHDOG_SECONDS, WATCHDOG_CODE, 0, NULL);
}

static const char *start(struct boot *boot, const struct slot *slot)
{
    struct efi_boot *efi = (struct efi_boot *)boot;

    (void)slot;
    arm_watchdog();
    bs->StartImage(efi->kernel, NULL, NULL);
    arm_watchdog(); /* a kernel that returns may have disarmed it */
    return "kernel: it returned";
}

/* The program --------------------------------------------------------------------------------- */

static const char *find_self(struct efi_boot *boot)
{
    static EFI_GUID guid = LOADED_IMAGE_PROTOCOL;
    EFI_LOADED_IMAGE *loaded = NULL;

    if (EFI_ERROR(bs->HandleProtocol(self, &guid, (void **)&loaded)))
        return "the firmware does not say where it was loaded from";
    return find_disk(&boot->disk, loaded->DeviceHandle);
}

static const char *select_and_boot(struct efi_boot *all)
{
    const char *wrong = find_self(all);

    if (wrong)
        return wrong;
    all->boot.gpt = (struct gpt *)(void *)allocate(sizeof(struct gpt));
    if (!all->boot.gpt)
        return "not enough memory for a partition table";
    all->boot.disk = &all->disk.disk;
    all->boot.load = load;
    all->boot.start = start;
    all->boot.say = say;
    boot(&all->boot);
    return "no slot could be started";
}

EFI_STATUS efi_main(EFI_HANDLE image, EFI_SYSTEM_TABLE *table);

EFI_STATUS efi_main(EFI_HANDLE image, EFI_SYSTEM_TABLE *table)
{
    static struct efi_boot all;
    struct line line = {0};

    self = image;
    st = table;
    bs = table->BootServices;
    arm_watchdog();
    add(&line, select_and_boot(&all));
    add(&line, "; reset in 30 s");
    say(NULL, line.text);
    bs->Stall(LAST_RESORT_SECONDS * 1000000);
    st->RuntimeServices->ResetSystem(EfiResetCold, EFI_SUCCESS, 0, NULL);
    return EFI_ABORTED;
}
