#!/usr/bin/env bash
# Mount a fresh store, copy real vectors in, and search through each door. Prints each command before its output.
#
# usage: scripts/demo.sh [MOUNTPOINT]
#
#   MOUNTPOINT    an existing empty directory; a temporary one unless given
#
# Whatever happens, the mount and everything temporary is gone afterwards. Exits 1 when an answer is wrong.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH=$PATH:$HOME/.cargo/bin

scripts/setup.sh
cargo build --release --locked
target=$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
PATH=$target/release:$PATH

work=$(mktemp -d "${TMPDIR:-/tmp}/vexfs-demo.XXXXXX")
store=$work/store
mnt=${1:-$work/mnt}
data=$PWD/tests/data
mounted=false

clean_up() {
    status=$?
    trap - EXIT
    exec 3>&-
    cd /
    ! $mounted || vexfs umount "$mnt" || umount -l "$mnt" 2>/dev/null || fusermount3 -uz "$mnt" || true
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
mkdir -p "$mnt"

heading() { printf '\n\n== %s\n' "$*"; }

# Shows a command and runs it.
run() {
    printf '\n$ %s\n' "$1"
    eval "$1"
}

# Shows a command that is expected to fail, and its exit status.
run_failing() {
    local status=0
    printf '\n$ %s\n' "$1"
    eval "$1" || status=$?
    [[ $status -ne 0 ]] || { echo "this should have failed" >&2; exit 1; }
    printf '(exit status %s)\n' "$status"
}

heading "A store is made and mounted"
mounted=true
run "vexfs mount --store $store $mnt"
run "cd $mnt"
run "vexfs status ."

heading "A directory is a collection: 1000 sentence embeddings (384 x f32) as one file"
run "mkdir sentences"
run "setfattr -n user.vexfs.metric -v ip sentences"
run "cp $data/minilm384_base.npy sentences/all.npy"
run "getfattr --absolute-names -n user.vexfs.count sentences"

heading "A file is a vector: the first 200 of them, one file each"
run "mkdir singles"
# Row i of the .npy begins behind 128 bytes of header and i rows of 1536 bytes.
run "for i in {000..199}; do
    dd status=none if=sentences/all.npy of=singles/\$i.f32 bs=1536 iflag=skip_bytes skip=\$((128 + 1536 * 10#\$i)) count=1
done"
run "ls -l singles | sed -n 2,3p"
run "for name in count dim metric; do getfattr --only-values -n user.vexfs.\$name singles; echo \" \$name\"; done"

heading "Neighbours of a file: a directory of links"
run "ls singles/.vexfs/similar/007.f32/"
run "readlink singles/.vexfs/similar/007.f32/0001_*"

heading "... an attribute"
run "getfattr --only-values -n user.vexfs.similar.3 singles/007.f32"

heading "... a JSON file; with options as a path element"
run "cat singles/.vexfs/@k=3,exact/similar/007.f32/results.json"

heading "... the command line"
run "vexfs search singles --like singles/007.f32 -k 3"

heading "... a row of a file with many"
run "ls sentences/.vexfs/@k=3/similar/all.npy#7/"
run "cmp sentences/.vexfs/rows/all.npy/000007.f32 singles/007.f32 && echo 'row 7 is what singles/007.f32 has'"

heading "Neighbours of any vector: drop it into queries/, read its answer in results/"
run "cp $data/minilm384_query.npy sentences/.vexfs/queries/fifty.npy"
run "ls sentences/.vexfs/results/fifty.npy/"
# ids.ivecs: each row is its length and ten row numbers. The ground truth has 50 rows of ten behind 128 bytes.
run "od -An -v -td4 -w44 sentences/.vexfs/results/fifty.npy/ids.ivecs | sed 's/^ *10//' >$work/found"
run "od -An -v -td4 -w40 -j128 $data/minilm384_gt.npy >$work/truth"
run "head -n 1 $work/found $work/truth"
# The tenth and eleventh of a query can be nearer to each other than f32 can tell.
run "cut -c 1-108 $work/found | cmp - <(cut -c 1-108 $work/truth) && echo 'the same nine for all 50 queries'"

heading "... or to the transaction file, in plain bash"
run "exec 3<>singles/.vexfs/query"
run "echo '{\"like\": \"007.f32\", \"k\": 2}' >&3; cat <&3"
run "echo '{\"like\": \"nowhere.f32\"}' >&3; cat <&3"
run "exec 3>&-"

heading "... or to the command line"
run "vexfs search sentences --vector singles/007.f32 -k 3"

heading "What is no vector is kept, and says why"
run "head -c 1532 singles/007.f32 >singles/short.f32"
run "getfattr --only-values -n user.vexfs.status singles/short.f32; echo"
run "cat singles/.vexfs/errors.jsonl"
run "ls -l singles/short.f32"

heading "A rename decides what a file is; unlink takes it out of every answer"
run "mv singles/short.f32 singles/short.txt; getfattr --only-values -n user.vexfs.status singles/short.txt; echo"
before=$(getfattr --only-values -n user.vexfs.similar singles/007.f32)
nearest=$(head -n 1 <<<"$before" | cut -f 2)
run "rm singles/$nearest"
run "getfattr --only-values -n user.vexfs.similar.2 singles/007.f32"

heading "Unmount, mount again: the same answer"
before=$(getfattr --only-values -n user.vexfs.similar singles/007.f32)
run "cd $work"
run "vexfs umount $mnt"
mounted=false
run_failing "vexfs status $mnt"
mounted=true
run "vexfs mount --store $store $mnt"
run "getfattr --absolute-names --only-values -n user.vexfs.similar.3 $mnt/singles/007.f32"
after=$(getfattr --absolute-names --only-values -n user.vexfs.similar "$mnt/singles/007.f32")
[[ $before == "$after" ]] || { echo "the answer has changed" >&2; exit 1; }
run "vexfs umount $mnt"
mounted=false
printf '\nDone. Store and mount point are removed.\n'
