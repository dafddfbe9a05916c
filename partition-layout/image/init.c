/*
 * The initramfs: from the booted slot to PID 1, or back to the selector.
 *
 * Finds the slot that the firmware started (LoaderDevicePartUUID), maps its root through dm-verity,
 * mounts STATE, lays /etc over it, and hands over to systemd. There is no shell to end in: whatever
 * fails is said on the console, and the machine reboots, which costs a trial boot its try. What
 * hangs is ended by the watchdog, which is armed first and which systemd takes over.
 *
 * A STATE that cannot be mounted is no reason to reboot, for both slots share it: the machine
 * comes up with a volatile one and says so, and /run/update-agent/state-is-volatile stays behind.
 */

#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <linux/watchdog.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BLOCK 4096
#define SECTOR 512

/* Seconds. A hang of the initramfs or of PID 1 ends in a reboot after the first of them. */
#define WATCHDOG_SECONDS 60
#define WAIT_FOR_DISK 30
#define FSCK_SECONDS 600
#define KILL_SECONDS 10

#define ROOT "/sysroot"
#define STATE ROOT "/media/state"
#define RUN ROOT "/run"
#define EFIVAR "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

/* Saying things ------------------------------------------------------------------------------ */

static int kmsg = -1;

/* To the kernel's log, and so to the journal; from level 3 up, the kernel shows it on the console. */
static void log_line(int level, const char *format, va_list values)
{
	char line[512];
	int used = snprintf(line, sizeof(line), "<%d>update-agent-init: ", level);

	vsnprintf(line + used, sizeof(line) - (size_t)used - 1, format, values);
	strcat(line, "\n");
	bool logged = kmsg >= 0 && write(kmsg, line, strlen(line)) > 0;
	if (!logged || level > 3)
		dprintf(STDOUT_FILENO, "%s", line + 3);
}

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	log_line(6, format, values);
	va_end(values);
}

static void __attribute__((format(printf, 1, 2))) complain(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	log_line(3, format, values);
	va_end(values);
}

static void __attribute__((noreturn)) give_up(void)
{
	complain("rebooting");
	sync();
	reboot(RB_AUTOBOOT);
	exit(1); /* the end of PID 1 is a panic, and panic=10 reboots as well */
}

#define fail(...) (complain(__VA_ARGS__), give_up())
#define must(call, what) ((call) < 0 ? fail("cannot %s: %s", what, strerror(errno)) : (void)0)

/* Files -------------------------------------------------------------------------------------- */

static void must_mount(const char *source, const char *target, const char *type,
		       unsigned long flags, const char *options)
{
	if (mount(source, target, type, flags, options) < 0)
		fail("cannot mount %s on %s: %s", source, target, strerror(errno));
}

/* Read a small file; a missing one is empty. */
static ssize_t read_file(const char *path, char *content, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, content, size - 1);

	content[got > 0 ? got : 0] = 0;
	if (fd >= 0)
		close(fd);
	return got;
}

static bool read_exactly(int fd, void *to, size_t size, uint64_t offset)
{
	return pread(fd, to, size, (off_t)offset) == (ssize_t)size;
}

static void touch(const char *path)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0644);

	if (fd >= 0)
		close(fd);
}

/* What the kernel needs for the rest --------------------------------------------------------- */

static void mount_kernel_file_systems(void)
{
	mkdir("/dev", 0755);
	mkdir("/proc", 0555);
	mkdir("/sys", 0555);
	mkdir(ROOT, 0755);
	must_mount("devtmpfs", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
	kmsg = open("/dev/kmsg", O_WRONLY | O_CLOEXEC);
	must_mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	must_mount("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
}

/* Load the modules in the order that the build found; what is missing in this machine stays out. */
static void load_modules(void)
{
	FILE *list = fopen("/modules/list", "re");
	char path[256];

	if (!list)
		fail("cannot read /modules/list: %s", strerror(errno));
	while (fgets(path, sizeof(path), list)) {
		path[strcspn(path, "\n")] = 0;
		int fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST && errno != ENODEV))
			complain("cannot load %s: %s", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	fclose(list);
}

static int watchdog = -1;

/* Closed without the magic letter when systemd is started, so it goes on counting. */
static void arm_watchdog(void)
{
	int seconds = WATCHDOG_SECONDS;

	watchdog = open("/dev/watchdog", O_WRONLY | O_CLOEXEC);
	if (watchdog < 0)
		complain("no watchdog: a hang will not end by itself: %s", strerror(errno));
	else if (ioctl(watchdog, WDIOC_SETTIMEOUT, &seconds) < 0)
		complain("the watchdog keeps its own timeout: %s", strerror(errno));
}

/* The booted partition ----------------------------------------------------------------------- */

struct partition {
	char disk[64]; /* as in /sys/class/block */
	char node[96];
	bool successful;
};

static int hex(char digit)
{
	return digit >= '0' && digit <= '9' ? digit - '0'
	     : digit >= 'a' && digit <= 'f' ? digit - 'a' + 10
	     : digit >= 'A' && digit <= 'F' ? digit - 'A' + 10
	     : -1;
}

/* Bytes of a GUID in the order of a partition table, from its text. */
static bool guid_from_text(const char *text, uint8_t guid[16])
{
	static const int place[16] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};

	for (int i = 0; i < 16; i++) {
		if (*text == '-')
			text++;
		int high = hex(text[0]), low = high < 0 ? -1 : hex(text[1]);
		if (low < 0)
			return false;
		guid[place[i]] = (uint8_t)(high << 4 | low);
		text += 2;
	}
	return *text == 0;
}

static void booted_guid(uint8_t guid[16])
{
	char raw[4 + 2 * 64] = {0}, text[65] = {0};

	must_mount("efivarfs", "/sys/firmware/efi/efivars", "efivarfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL);
	ssize_t got = read_file(EFIVAR, raw, sizeof(raw));
	for (ssize_t i = 4, n = 0; i + 1 < got && n < 64; i += 2, n++)
		text[n] = raw[i]; /* UTF-16 behind four bytes of attributes */
	if (!guid_from_text(text, guid))
		fail("the boot loader named no slot: LoaderDevicePartUUID is '%s'", text);
}

static uint32_t crc32(const uint8_t *data, size_t size)
{
	uint32_t crc = ~0u;

	while (size--) {
		crc ^= *data++;
		for (int bit = 0; bit < 8; bit++)
			crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
	}
	return ~crc;
}

struct gpt_header {
	uint8_t signature[8];
	uint32_t revision, size, crc, zero;
	uint64_t lba, other_lba, first_usable, last_usable;
	uint8_t disk[16];
	uint64_t entries_lba;
	uint32_t entries, entry_size, entries_crc;
} __attribute__((packed));

struct gpt_entry {
	uint8_t type[16], guid[16];
	uint64_t first, last, attributes;
	uint16_t name[36];
} __attribute__((packed));

#define SUCCESSFUL (1ull << 56)

/* Look for a partition in the table whose header is at ``lba``; return its number, or 0. */
static uint32_t number_in_table(int fd, uint64_t lba, uint32_t sector, const uint8_t guid[16], bool *successful)
{
	uint8_t raw[BLOCK];
	struct gpt_header header;

	if (!read_exactly(fd, raw, sector, lba * sector))
		return 0;
	memcpy(&header, raw, sizeof(header));
	if (memcmp(header.signature, "EFI PART", 8) || header.lba != lba || header.size < 92 ||
	    header.size > sector || header.entry_size != sizeof(struct gpt_entry) || header.entries > 1024)
		return 0;
	memset(raw + 16, 0, 4);
	if (crc32(raw, header.size) != header.crc)
		return 0;

	size_t size = header.entries * sizeof(struct gpt_entry);
	struct gpt_entry *entries = malloc(size);
	uint32_t found = 0;
	if (entries && read_exactly(fd, entries, size, header.entries_lba * sector) &&
	    crc32((uint8_t *)entries, size) == header.entries_crc)
		for (uint32_t i = 0; i < header.entries && !found; i++)
			if (!memcmp(entries[i].guid, guid, 16)) {
				found = i + 1;
				*successful = entries[i].attributes & SUCCESSFUL;
			}
	free(entries);
	return found;
}

/* The same for a whole disk: the primary table counts, the backup only when that one is damaged. */
static uint32_t number_on_disk(const char *disk, const uint8_t guid[16], bool *successful)
{
	char node[96];
	int sector = 0;
	uint64_t size = 0;
	uint32_t found = 0;

	snprintf(node, sizeof(node), "/dev/%s", disk);
	int fd = open(node, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (!ioctl(fd, BLKSSZGET, &sector) && !ioctl(fd, BLKGETSIZE64, &size) && sector >= SECTOR &&
	    sector <= BLOCK && size > BLOCK) {
		found = number_in_table(fd, 1, (uint32_t)sector, guid, successful);
		if (!found)
			found = number_in_table(fd, size / (uint32_t)sector - 1, (uint32_t)sector, guid, successful);
	}
	close(fd);
	return found;
}

/* Call ``visit`` with the name of each block device until it returns true. */
static bool any_block_device(bool (*visit)(const char *name, void *with), void *with)
{
	DIR *folder = opendir("/sys/class/block");
	bool found = false;

	for (struct dirent *it; folder && !found && (it = readdir(folder));)
		found = it->d_name[0] != '.' && visit(it->d_name, with);
	if (folder)
		closedir(folder);
	return found;
}

/* Whether ``name`` is the partition of ``disk`` whose uevent has the line ``property``. */
static bool is_partition(const char *name, const char *disk, const char *property)
{
	char path[512], uevent[1024];

	snprintf(path, sizeof(path), "/sys/class/block/%s/%s/uevent", disk, name);
	if (read_file(path, uevent, sizeof(uevent)) < 0)
		return false;
	for (char *line = strtok(uevent, "\n"); line; line = strtok(NULL, "\n"))
		if (!strcmp(line, property))
			return true;
	return false;
}

struct search {
	const uint8_t *guid;
	struct partition *found;
	const char *property;
};

static bool visit_partition(const char *name, void *with)
{
	struct search *search = with;

	if (!is_partition(name, search->found->disk, search->property))
		return false;
	snprintf(search->found->node, sizeof(search->found->node), "/dev/%s", name);
	return true;
}

static bool visit_disk(const char *name, void *with)
{
	struct search *search = with;
	char property[32];
	uint32_t number = number_on_disk(name, search->guid, &search->found->successful);

	if (!number)
		return false;
	snprintf(search->found->disk, sizeof(search->found->disk), "%s", name);
	snprintf(property, sizeof(property), "PARTN=%u", number);
	search->property = property;
	return any_block_device(visit_partition, search);
}

static int seconds_left(const struct timespec *since, int limit)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return limit - (int)(now.tv_sec - since->tv_sec);
}

static int listen_to_kernel(void)
{
	struct sockaddr_nl everyone = {.nl_family = AF_NETLINK, .nl_groups = 1};
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_KOBJECT_UEVENT);

	if (fd < 0 || bind(fd, (struct sockaddr *)&everyone, sizeof(everyone)) < 0)
		fail("cannot listen to the kernel: %s", strerror(errno));
	return fd;
}

/* Wait until the kernel tells of the slot's disk. Two disks with its GUID are a copied disk: the
 * first one found counts, as it does for the firmware. */
static void find_slot(int events, const uint8_t guid[16], struct partition *slot)
{
	struct search search = {.guid = guid, .found = slot};
	struct timespec began;
	char event[8192];

	clock_gettime(CLOCK_MONOTONIC, &began);
	while (!any_block_device(visit_disk, &search)) {
		struct pollfd poll_for = {.fd = events, .events = POLLIN};
		int left = seconds_left(&began, WAIT_FOR_DISK);
		if (left <= 0 || poll(&poll_for, 1, left * 1000) == 0)
			fail("the booted slot's disk did not appear within %d s", WAIT_FOR_DISK);
		while (recv(events, event, sizeof(event), 0) > 0)
			;
	}
}

/* The root ----------------------------------------------------------------------------------- */

struct slot_header {
	uint8_t magic[8];
	uint32_t crc, zero;
	uint64_t image_size, fs_size, verity_offset, kernel_offset, kernel_region_size;
} __attribute__((packed));

static void read_header(const char *node, struct slot_header *header)
{
	uint8_t raw[SECTOR], block[BLOCK];
	int fd = open(node, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || !read_exactly(fd, block, sizeof(block), 0))
		fail("cannot read %s: %s", node, strerror(errno));
	close(fd);
	memcpy(raw, block + SECTOR, sizeof(raw));
	memcpy(header, raw, sizeof(*header));
	memset(raw + 8, 0, 4);
	if (memcmp(header->magic, "UASLOT\0\1", 8) || crc32(raw, sizeof(raw)) != header->crc)
		fail("%s holds no slot image", node);
}

/* The value of a word of the kernel command line. */
static void option(const char *name, char *value, size_t size)
{
	char line[BLOCK];

	read_file("/proc/cmdline", line, sizeof(line));
	for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n"))
		if (!strncmp(word, name, strlen(name)) && word[strlen(name)] == '=') {
			snprintf(value, size, "%s", word + strlen(name) + 1);
			return;
		}
	fail("%s= is missing on the kernel command line", name);
}

static void mapper(unsigned long request, struct dm_ioctl *call, size_t size, const char *what)
{
	static int control = -1;

	if (control < 0)
		control = open("/dev/mapper/control", O_RDWR | O_CLOEXEC);
	call->version[0] = DM_VERSION_MAJOR;
	call->data_size = (uint32_t)size;
	call->data_start = sizeof(*call);
	strcpy(call->name, "root");
	must(control < 0 ? -1 : ioctl(control, request, call), what);
}

/* Map the root through dm-verity; its superblock, written by us, needs no second reading: one block
 * before the tree, no salt, SHA-256. A wrong block makes the kernel reboot at once. */
static void map_root(const char *node, const struct slot_header *header, char *mapped, size_t size)
{
	struct {
		struct dm_ioctl call;
		struct dm_target_spec target;
		char parameters[512];
	} table = {.call = {.target_count = 1, .flags = DM_READONLY_FLAG}};
	struct dm_ioctl create = {0}, resume = {0};
	char hash[65];
	uint64_t blocks = header->fs_size / BLOCK;

	option("ua.roothash", hash, sizeof(hash));
	table.target.length = header->fs_size / SECTOR;
	strcpy(table.target.target_type, "verity");
	snprintf(table.parameters, sizeof(table.parameters),
		 "1 %s %s %d %d %llu %llu sha256 %s - 1 restart_on_corruption", node, node, BLOCK, BLOCK,
		 (unsigned long long)blocks, (unsigned long long)(header->verity_offset / BLOCK + 1), hash);
	mapper(DM_DEV_CREATE, &create, sizeof(create), "create the mapping of the root");
	mapper(DM_TABLE_LOAD, &table.call, sizeof(table), "map the root through dm-verity");
	mapper(DM_DEV_SUSPEND, &resume, sizeof(resume), "start the mapping of the root");
	snprintf(mapped, size, "/dev/dm-%u", minor(resume.dev));
}

/* STATE -------------------------------------------------------------------------------------- */

/* Whether a child ends in its time; the watchdog, which has less, is fed meanwhile. */
static bool ends(pid_t child, int *status, int seconds)
{
	const struct timespec second = {.tv_sec = 1};
	sigset_t ended;
	pid_t found;

	sigemptyset(&ended);
	sigaddset(&ended, SIGCHLD); /* blocked by who made the child, so none is missed */
	while ((found = waitpid(child, status, WNOHANG)) == 0 && seconds-- > 0) {
		if (watchdog >= 0)
			ioctl(watchdog, WDIOC_KEEPALIVE, 0);
		sigtimedwait(&ended, NULL, &second);
	}
	return found == child;
}

/* Run e2fsck of the root that was just verified; no copy of it is needed here. */
static void check_state(const char *node)
{
	int status = 0;
	sigset_t blocked, before;

	sigemptyset(&blocked);
	sigaddset(&blocked, SIGCHLD);
	sigprocmask(SIG_BLOCK, &blocked, &before);
	pid_t child = fork();
	if (child == 0) {
		if (chroot(ROOT) < 0 || chdir("/") < 0)
			_exit(127);
		execl("/usr/sbin/e2fsck", "e2fsck", "-p", node, NULL);
		_exit(127);
	}
	if (child < 0) {
		complain("cannot check STATE: %s", strerror(errno));
	} else if (!ends(child, &status, FSCK_SECONDS)) {
		complain("STATE could not be checked within %d seconds", FSCK_SECONDS);
		kill(child, SIGKILL);
		ends(child, &status, KILL_SECONDS); /* as long as it lives, nobody can mount STATE */
	} else if (!WIFEXITED(status) || WEXITSTATUS(status) > 1) {
		complain("STATE has errors that e2fsck -p does not mend (status %x)", status);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
}

static bool mount_state(struct partition *slot)
{
	struct search search = {.found = slot, .property = "PARTNAME=STATE"};

	if (!any_block_device(visit_partition, &search)) {
		complain("disk %s has no partition STATE", slot->disk);
		return false;
	}
	check_state(slot->node);
	if (mount(slot->node, STATE, "ext4", MS_NOATIME | MS_NODEV, NULL) < 0) {
		complain("cannot mount STATE (%s): %s", slot->node, strerror(errno));
		return false;
	}
	return true;
}

static bool make_folders(void)
{
	static const struct {
		const char *path;
		mode_t mode;
	} folders[] = {
		{STATE "/etc", 0755}, {STATE "/etc/upper", 0755}, {STATE "/etc/work", 0755},
		{STATE "/var", 0755}, {STATE "/home", 0755}, {STATE "/units", 0755}, {STATE "/config", 0700},
	};

	for (size_t i = 0; i < sizeof(folders) / sizeof(*folders); i++)
		if (mkdir(folders[i].path, folders[i].mode) < 0 && errno != EEXIST)
			return false;
	return true;
}

static bool lay_over(void)
{
	return make_folders() &&
	       mount("etc", ROOT "/etc", "overlay", MS_NOATIME,
		     "lowerdir=" ROOT "/etc,upperdir=" STATE "/etc/upper,workdir=" STATE "/etc/work,"
		     "index=off,metacopy=off,redirect_dir=off") == 0 &&
	       mount(STATE "/var", ROOT "/var", NULL, MS_BIND, NULL) == 0 &&
	       mount(STATE "/home", ROOT "/home", NULL, MS_BIND, NULL) == 0;
}

static void set_up_state(struct partition *slot)
{
	if (mount_state(slot)) {
		if (lay_over())
			return;
		complain("cannot use STATE: %s", strerror(errno));
		umount2(ROOT "/home", MNT_DETACH);
		umount2(ROOT "/var", MNT_DETACH);
		umount2(ROOT "/etc", MNT_DETACH);
		umount2(STATE, MNT_DETACH);
	}
	complain("STATE IS VOLATILE: what this boot writes is lost with it");
	touch(RUN "/update-agent/state-is-volatile");
	must_mount("state", STATE, "tmpfs", MS_NODEV, "mode=0755,size=50%");
	if (!lay_over())
		fail("cannot lay /etc over a volatile STATE: %s", strerror(errno));
}

/* Handing over ------------------------------------------------------------------------------- */

/* Free the memory that the initramfs holds. */
static void remove_ourselves(void)
{
	DIR *folder = opendir("/modules");

	for (struct dirent *it; folder && (it = readdir(folder));)
		unlinkat(dirfd(folder), it->d_name, 0);
	if (folder)
		closedir(folder);
	unlink("/init");
}

static void __attribute__((noreturn)) switch_root(void)
{
	static const char *const moved[] = {"/dev", "/proc", "/sys"};
	char target[32];

	for (size_t i = 0; i < sizeof(moved) / sizeof(*moved); i++) {
		snprintf(target, sizeof(target), ROOT "%s", moved[i]);
		must_mount(moved[i], target, NULL, MS_MOVE, NULL);
	}
	remove_ourselves();
	must(chdir(ROOT), "enter the root");
	must_mount(".", "/", NULL, MS_MOVE, NULL);
	must(chroot("."), "change the root");
	must(chdir("/"), "enter the new root");
	execl("/sbin/init", "/sbin/init", NULL);
	fail("cannot start /sbin/init: %s", strerror(errno));
}

int main(void)
{
	struct partition slot = {0};
	struct slot_header header;
	uint8_t guid[16];
	char mapped[32];

	umask(0);
	mount_kernel_file_systems();
	say("start");
	int events = listen_to_kernel();
	load_modules();
	arm_watchdog();
#ifdef HANG /* a release for tests: what the watchdog is for */
	say("hanging, as built");
	for (;;)
		pause();
#endif
	booted_guid(guid);
	find_slot(events, guid, &slot);
	read_header(slot.node, &header);
	map_root(slot.node, &header, mapped, sizeof(mapped));
	must_mount(mapped, ROOT, "erofs", MS_RDONLY, NULL);
	must_mount("run", RUN, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=20%");
	mkdir(RUN "/update-agent", 0755);
	if (!slot.successful)
		touch(RUN "/update-agent/trial");
	say("slot %s%s", slot.node, slot.successful ? "" : ", on trial");
	/* e2fsck needs device nodes; the mount is moved into place with /dev itself. */
	must_mount("/dev", ROOT "/dev", NULL, MS_BIND, NULL);
	set_up_state(&slot);
	umount2(ROOT "/dev", MNT_DETACH);
	say("end");
	switch_root();
}
