#!/bin/sh
# Makes tests/fixtures/vN/store.tar.gz: a store of the present format with something of everything, closed. Run it
# when the format version changes, and keep the fixtures of the versions before.
# Usage: scripts/make_fixture.sh [VEXFS]   (the program; target/release/vexfs unless it is named)
set -eu
vexfs=$(realpath "${1:-target/release/vexfs}")
out=$(realpath "$(dirname "$0")/../tests/fixtures")
work=$(mktemp -d)
trap 'mountpoint -q "$work/mnt" && "$vexfs" umount "$work/mnt"; rm -rf "$work"' EXIT
mkdir -m 0700 "$work/store"
mkdir "$work/mnt"
"$vexfs" mount --store "$work/store" "$work/mnt"
python3 - "$work/mnt" <<'END'
import os, struct, sys
mnt = sys.argv[1]
def put(path, data):
    path = os.path.join(mnt, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
def f32(values):
    return struct.pack("<%df" % len(values), *values)
# A graph from the first row on.
os.mkdir(mnt + "/docs")
put("docs/.vexfs/config", b'[collection]\ndim = 4\nmetric = "l2"\n[index]\nexact_below = 1\n')
for i in range(100):
    put("docs/%02d.f32" % i, f32([i, i * i % 17, i % 5, 1]))
put("docs/text.vec", b"1000 2 3 4\n")
# Rows in a sealed blob.
put("rows/all.fbin", struct.pack("<II", 4300, 8) + b"".join(f32([i % 50 + 1, i // 50, 0, 1, 2, 3, 4, 5]) for i in range(4300)))
put("rows/below/bad.f32", b"no vector")
put("plain/note.txt", b"a note\n")
put("plain/large.bin", bytes(range(256)) * 200)
os.link(mnt + "/plain/note.txt", mnt + "/plain/linked.txt")
os.symlink("note.txt", mnt + "/plain/symlink")
os.setxattr(mnt + "/plain/note.txt", "user.colour", b"blue")
os.chmod(mnt + "/plain/note.txt", 0o640)
os.utime(mnt + "/plain/note.txt", ns=(1, 1_500_000_000_123_456_789))
open(mnt + "/.vexfs/sync").read()
END
"$vexfs" umount "$work/mnt"
version=$(sed -n 's/^version //p' "$work/store/VEXFS")
mkdir -p "$out/v$version"
tar -C "$work" --sparse --owner=0 --group=0 --numeric-owner -cf - store | gzip -9n >"$out/v$version/store.tar.gz"
ls -l "$out/v$version/store.tar.gz"
