"""A file system with the habits of Drive, spoken straight to the kernel (the FUSE protocol of linux/fuse.h), with no
package: no links, slow, late, full, away.

`python drive_fuse.py BACKING MOUNTPOINT CONTROL` mounts and serves. CONTROL is a JSON file that is read at every call:
{"gone": false, "slow": seconds, "late": seconds, "room": bytes, "flip": writes}."""
import ctypes, errno, json, os, stat, struct, sys, time
from pathlib import Path

LOOKUP, FORGET, GETATTR, SETATTR, SYMLINK, MKDIR, UNLINK, RMDIR, RENAME, LINK = 1, 2, 3, 4, 6, 9, 10, 11, 12, 13
OPEN, READ, WRITE, STATFS, RELEASE, FSYNC, FLUSH, INIT = 14, 15, 16, 17, 18, 20, 25, 26
OPENDIR, READDIR, RELEASEDIR, FSYNCDIR, ACCESS, CREATE, INTERRUPT = 27, 28, 29, 30, 34, 35, 36
DESTROY, BATCH_FORGET, RENAME2 = 38, 42, 45
SILENT = {FORGET, BATCH_FORGET, INTERRUPT}


class Server:
    def __init__(self, backing, mountpoint, control):
        self.backing, self.control = Path(backing), Path(control)
        self.paths, self.ids, self.files, self.made, self.flips = {1: ""}, {"": 1}, {}, {}, 0
        self.fd = os.open("/dev/fuse", os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mount(
            b"drive", os.fsencode(mountpoint), b"fuse.drive", 6, b"fd=%d,rootmode=40000,user_id=0,group_id=0" % self.fd
        ):
            raise OSError(ctypes.get_errno(), "mount")

    def serve(self):
        while True:
            try: message = os.read(self.fd, 1 << 20)
            except OSError as e:
                if e.errno in (errno.ENOENT, errno.EINTR): continue
                return
            _, op, unique, node = struct.unpack_from("<IIQQ", message)
            try: error, body = 0, self.answer(op, node, message[40:])
            except OSError as e: error, body = -e.errno, b""
            if op not in SILENT:
                try: os.write(self.fd, struct.pack("<IiQ", 16 + len(body), error, unique) + body)
                except OSError as e:
                    if e.errno != errno.ENOENT: return      # ENOENT: the caller was interrupted
            if op == DESTROY: return

    def answer(self, op, node, data):
        if op == INIT: return struct.pack("<IIIIHHIIHHI28x", 7, 31, 1 << 17, 0, 12, 9, 1 << 17, 1, 32, 0, 0)
        if op in SILENT or op == DESTROY: return b""
        rules = self.rules()
        if op in (RELEASE, RELEASEDIR):
            if (fd := self.files.pop(struct.unpack_from("<Q", data)[0], None)) is not None and op == RELEASE:
                os.close(fd)
            return b""
        if rules.get("gone"): raise OSError(errno.ENOTCONN, "gone")
        time.sleep(rules.get("slow", 0))
        handler = getattr(self, f"op{op}", None)
        if handler is None: raise OSError(errno.ENOSYS, "no such operation")
        return handler(node, data, rules)

    def rules(self):
        try: return json.loads(self.control.read_text())
        except (OSError, ValueError): return {}

    def path(self, node): return self.backing/self.paths[node]

    def child(self, node, name):
        relative = os.path.join(self.paths[node], os.fsdecode(name))
        return relative, self.backing/relative

    def late(self, relative, rules): return time.monotonic() - self.made.get(relative, -1e9) < rules.get("late", 0)

    def attributes(self, path):
        s = os.lstat(path)
        times = [int(t) for t in (s.st_atime, s.st_mtime, s.st_ctime)]
        return struct.pack(
            "<6Q10I", s.st_ino, s.st_size, s.st_blocks, *times, 0, 0, 0, s.st_mode, 1, s.st_uid, s.st_gid, 0, 4096, 0
        )

    def entry(self, relative):
        number = self.ids.setdefault(relative, max(self.paths) + 1)
        self.paths[number] = relative
        return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + self.attributes(self.backing/relative)

    def handle(self, value):
        number = max(self.files, default=0) + 1
        self.files[number] = value
        return struct.pack("<QII", number, 0, 0)

    def op1(self, node, data, rules):                          # lookup
        relative, path = self.child(node, data.split(b"\0")[0])
        if self.late(relative, rules): raise OSError(errno.ENOENT, "late")
        return self.entry(relative)

    def op3(self, node, data, rules): return struct.pack("<QII", 0, 0, 0) + self.attributes(self.path(node))

    def op4(self, node, data, rules):                          # setattr: the size is all that matters here
        valid, _, _, size = struct.unpack_from("<IIQQ", data)
        if valid & 8: os.truncate(self.path(node), size)
        return self.op3(node, data, rules)

    def op6(self, node, data, rules): raise OSError(errno.EPERM, "no symbolic links")

    def op13(self, node, data, rules): raise OSError(errno.EPERM, "no hard links")

    def op9(self, node, data, rules):                          # mkdir
        relative, path = self.child(node, data[8:].split(b"\0")[0])
        os.mkdir(path)
        self.made[relative] = time.monotonic()
        return self.entry(relative)

    def gone_name(self, relative):
        if (number := self.ids.pop(relative, None)) is not None: self.paths[number] = relative + " (deleted)"

    def op10(self, node, data, rules):
        relative, path = self.child(node, data.split(b"\0")[0])
        os.unlink(path)
        self.gone_name(relative)
        return b""

    def op11(self, node, data, rules):
        relative, path = self.child(node, data.split(b"\0")[0])
        os.rmdir(path)
        self.gone_name(relative)
        return b""

    def move(self, node, directory, names):
        (old, old_path), (new, new_path) = self.child(node, names[0]), self.child(directory, names[1])
        os.rename(old_path, new_path)
        self.gone_name(new)
        for number, relative in list(self.paths.items()):
            if relative == old or relative.startswith(old + "/"):
                self.ids.pop(relative, None)
                self.paths[number] = new + relative[len(old):]
                self.ids[self.paths[number]] = number
        self.made[new] = time.monotonic()
        return b""

    def op12(self, node, data, rules): return self.move(node, struct.unpack_from("<Q", data)[0], data[8:].split(b"\0"))

    def op45(self, node, data, rules):
        directory, flags = struct.unpack_from("<QI", data)
        if flags: raise OSError(errno.EINVAL, "flags")
        return self.move(node, directory, data[16:].split(b"\0"))

    def op14(self, node, data, rules):                         # open
        flags = struct.unpack_from("<I", data)[0] & ~(os.O_CREAT | os.O_EXCL | os.O_APPEND)
        return self.handle(
            os.open(self.path(node), (flags & ~3) | (os.O_RDONLY if flags & 3 == os.O_RDONLY else os.O_RDWR))
        )

    def op35(self, node, data, rules):                         # create
        flags = struct.unpack_from("<I", data)[0] & ~os.O_APPEND
        relative, path = self.child(node, data[16:].split(b"\0")[0])
        fd = os.open(path, (flags & ~3) | os.O_RDWR | os.O_CREAT, 0o644)
        self.made[relative] = time.monotonic()
        return self.entry(relative) + self.handle(fd)

    def op15(self, node, data, rules):
        number, offset, size = struct.unpack_from("<QQI", data)
        return os.pread(self.files[number], size, offset)

    def used(self): return sum(p.stat().st_size for p in self.backing.rglob("*") if p.is_file())

    def op16(self, node, data, rules):                         # write
        number, offset, size = struct.unpack_from("<QQI", data)
        content = bytearray(data[40:40 + size])
        if "room" in rules and self.used() + size > rules["room"]: raise OSError(errno.ENOSPC, "full")
        if self.flips < rules.get("flip", 0) and size > 500:
            content[-1] ^= 1
            self.flips += 1
        return struct.pack("<II", os.pwrite(self.files[number], content, offset), 0)

    def op17(self, node, data, rules):
        s = os.statvfs(self.backing)
        free = max(0, rules["room"] - self.used())//s.f_bsize if "room" in rules else s.f_bavail
        return struct.pack("<5Q4I24x", s.f_blocks, free, free, s.f_files, s.f_ffree, s.f_bsize, 255, s.f_frsize, 0)

    def op20(self, node, data, rules):
        os.fsync(self.files[struct.unpack_from("<Q", data)[0]])
        return b""
    def op25(self, node, data, rules): return b""
    def op30(self, node, data, rules): return b""
    def op34(self, node, data, rules): return b""

    def op27(self, node, data, rules):                         # opendir: the listing is taken here
        names = [
            e for e in sorted(os.listdir(self.path(node))) if not self.late(os.path.join(self.paths[node], e), rules)
        ]
        return self.handle([".", ".."] + names)

    def op28(self, node, data, rules):                         # readdir
        number, offset, size = struct.unpack_from("<QQI", data)
        out = b""
        for i, name in enumerate(self.files[number][offset:], start=offset):
            try: kind = stat.S_IFMT(os.lstat(self.path(node)/name).st_mode) >> 12
            except OSError: continue
            raw = os.fsencode(name)
            record = struct.pack("<QQII", i + 1, i + 1, len(raw), kind) + raw
            record += b"\0"*(-len(record) % 8)
            if len(out) + len(record) > size: break
            out += record
        return out


if __name__ == "__main__":
    server = Server(*sys.argv[1:4])
    print("ready", flush=True)
    server.serve()
