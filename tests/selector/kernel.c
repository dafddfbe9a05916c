/* A kernel for tests: says who it is and from which partition it was started, then does as planned.
 *
 * The plan is patched into the file: a name, and behind it what to do.
 */
#include <efi.h>
#include <stddef.h>
#include <stdint.h>

enum { OFF = 's', HANG = 'h', RETURN = 'r', RESET = 'b' };

/* 8 bytes to find it by, one for what to do, the rest is the name. */
static volatile char plan[40] = "UA-PLAN:s";

static EFI_SYSTEM_TABLE *st;

static void put(CHAR16 c)
{
    CHAR16 text[2] = {c, 0};

    st->ConOut->OutputString(st->ConOut, text);
}

static void say(const char *text)
{
    while (*text)
        put((CHAR16)*text++);
}

static void say_byte(uint8_t byte)
{
    put((CHAR16) "0123456789abcdef"[byte >> 4]);
    put((CHAR16) "0123456789abcdef"[byte & 15]);
}

/* The GUID of the partition at the end of a device path, as its bytes stand there. */
static void say_partition(const uint8_t *node)
{
    while (node[0] != END_DEVICE_PATH_TYPE) {
        if (node[0] == MEDIA_DEVICE_PATH && node[1] == MEDIA_HARDDRIVE_DP)
            for (unsigned i = 0; i < 16; i++)
                say_byte(node[24 + i]);
        node += node[2] | node[3] << 8;
    }
}

EFI_STATUS efi_main(EFI_HANDLE self, EFI_SYSTEM_TABLE *table);

EFI_STATUS efi_main(EFI_HANDLE self, EFI_SYSTEM_TABLE *table)
{
    static EFI_GUID image_guid = LOADED_IMAGE_PROTOCOL, path_guid = DEVICE_PATH_PROTOCOL;
    EFI_LOADED_IMAGE *image = NULL;
    uint8_t *path = NULL;

    st = table;
    table->BootServices->HandleProtocol(self, &image_guid, (void **)&image);
    table->BootServices->HandleProtocol(image->DeviceHandle, &path_guid, (void **)&path);
    say("kernel ");
    for (unsigned i = 9; i < sizeof plan && plan[i]; i++)
        put((CHAR16)plan[i]);
    say(" runs from partition ");
    say_partition(path);
    say(".\r\n");
    if (plan[8] == OFF)
        table->RuntimeServices->ResetSystem(EfiResetShutdown, EFI_SUCCESS, 0, NULL);
    if (plan[8] == RESET)
        table->RuntimeServices->ResetSystem(EfiResetCold, EFI_SUCCESS, 0, NULL);
    while (plan[8] == HANG)
        __asm__ volatile("pause");
    return EFI_SUCCESS;
}
