#!/usr/bin/env bash
# Run other people's tests of filesystems, and programs that depend on one, on a fresh mount, and print the totals.
#
# usage: scripts/posix.sh [--short] [CHECK...]
#
#   --short    a bounded part of each, about 90 s in all after the installation
#   CHECK      pjdfstest, fsx, fio, stress, dbench, git, sqlite, cargo, archives, memory; all of them unless given
#
# Root does it, or sudo, because owners change and other users look; the mount lets others in. What is missing is
# installed (see scripts/setup.sh), pjdfstest and fsx by cargo below target/posix. The work is done in a directory
# of its own below TMPDIR, and nothing is left but target/posix/log/CHECK, what each check said.
#
# A check counts as failed as well when the daemon has died after it, or its health is not ok. Exits 1 when one
# failed, 2 on bad usage.
set -euo pipefail
cd "$(dirname "$0")/.."
repo=$PWD
export PATH=$PATH:$HOME/.cargo/bin LC_ALL=C

# Versions of what cargo installs: another one may test something else.
pjdfstest=0.2.2
fsx=0.3.2

usage() {
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$repo/scripts/posix.sh" >&2
    exit 2
}

known=(pjdfstest fsx fio stress dbench git sqlite cargo archives memory)
short=false
checks=()
for word in "$@"; do
    case $word in
        --short) short=true ;;
        *) [[ " ${known[*]} " == *" $word "* ]] || usage; checks+=("$word") ;;
    esac
done
[[ ${#checks[@]} -gt 0 ]] || checks=("${known[@]}")

# The first argument in a short run, the second in a long one.
either() { if $short; then echo "$1"; else echo "$2"; fi; }

if [[ $EUID -ne 0 ]]; then
    exec sudo env PATH="$PATH" HOME="$HOME" "$repo/scripts/posix.sh" "$@"
fi

scripts/setup.sh --posix
# A short run takes the build that the tests use as well.
cargo build --profile "$(either dev release)" --locked --quiet
target=$(cargo metadata --locked --no-deps --format-version 1 | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')
tools=$target/posix
mkdir -p "$tools/log"
for crate in "pjdfstest@$pjdfstest" "fsx@$fsx"; do
    # Does nothing when this version is there.
    cargo install --quiet --locked --root "$tools" "$crate"
done
PATH=$target/$(either debug release):$tools/bin:$PATH
vexfs=$(command -v vexfs)

work=$(mktemp -d "${TMPDIR:-/tmp}/vexfs-posix.XXXXXX")
chmod 755 "$work"
mnt=$work/mnt
daemon=
running=
mkdir "$mnt" "$work/helpers"

clean_up() {
    status=$?
    trap - EXIT
    cd /
    [[ -z $running ]] || kill -KILL -- "-$running" 2>/dev/null || true
    umount -l "$mnt" 2>/dev/null || true
    if [[ -n $daemon ]]; then
        for _ in {1..100}; do
            kill -0 "$daemon" 2>/dev/null || break
            sleep 0.1
        done
        kill -KILL "$daemon" 2>/dev/null || true
    fi
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# The daemon is a child, so that its end is seen.
start() {
    VEXFS_LOG=warn "$vexfs" mount -f --store "$work/store" -o allow_other "$mnt" 2>>"$tools/log/daemon" &
    daemon=$!
    for _ in {1..300}; do
        [[ $(cat "$mnt/.vexfs/version" 2>/dev/null) ]] && return
        kill -0 "$daemon" 2>/dev/null || break
        sleep 0.1
    done
    echo "posix: the store cannot be mounted: see $tools/log/daemon" >&2
    exit 1
}

# Unmounts as a person would, and waits for the daemon. Both are given a minute.
stop() {
    # 5: unmounted, and the daemon still writes out what it has.
    timeout 60 vexfs umount "$mnt" || [[ $? -eq 5 ]] || return 1
    for _ in {1..600}; do
        if ! kill -0 "$daemon" 2>/dev/null; then
            local status=0
            wait "$daemon" || status=$?
            daemon=
            return "$status"
        fi
        sleep 0.1
    done
    return 1
}

is_well() { kill -0 "$daemon" 2>/dev/null && timeout 10 grep -q '"ok"' "$mnt/.vexfs/health"; }

# What is shown of a check, said by the check itself.
total() { printf '%s\n' "$*" >"$work/total"; }

# Everything of a tree that a copy has to keep, as text.
list() {
    (
        cd "$1"
        find . -mindepth 1 \( -type l -printf '%p l %l\n' \
            -o -type d -printf '%p d %m %U:%G %T@\n' -o -printf '%p %y %m %U:%G %s %T@ %n\n' \) | sort
        find . -type f -print0 | sort -z | xargs -0 sha256sum
        find . -print0 | sort -z | xargs -0 getfattr -hd -m- -- 2>/dev/null
    )
}

# Run twice: the tests of EROFS remount for reading, which is refused in a process that has run those of
# posix_fallocate, because they leave a file open (on ext4 as well). mount(8) asks a helper in /sbin to remount: in a
# mount namespace of its own our helper is all that is there. Another filesystem is needed for EXDEV.
check_pjdfstest() {
    local said skipped
    ln -sf "$vexfs" "$work/helpers/mount.fuse.vexfs"
    mkdir "$work/other"
    sed 's/^allow_remount = .*/allow_remount = true/' scripts/posix/pjdfstest.toml >"$work/erofs.toml"
    unshare --mount --propagation private bash -uc '
        mount --bind "$1/helpers" "$(realpath /sbin)"
        mount -t tmpfs none "$1/other"
        pjdfstest -c "$2/scripts/posix/pjdfstest.toml" -p "$3" -s "$1/other"
        pjdfstest -c "$1/erofs.toml" -p "$3" -s "$1/other" erofs' - "$work" "$repo" "$dir" || true
    said=$(sed -n 's/^Summary: //p' "$log" | tr '\n' ';')
    total "$(grep -c ' ok$' "$log") passed, $(grep -c ' FAILED$' "$log") failed"
    # One test needs LINK_MAX, which the kernel asks no FUSE filesystem for. Another one cuts a running program off by
    # O_RDONLY|O_TRUNC, which goes through now and then (docs/SEMANTICS.md). Tests that are missing are noticed too.
    skipped=$(sed -n 's/ *skipped$//p' "$log" | grep -v '::erofs_' | tr '\n' ' ')
    [[ $skipped == "link::link_count_max " ]]
    said=${said/1 failed, 14 skipped, 383 passed/0 failed, 14 skipped, 384 passed}
    [[ $said == "0 failed, 14 skipped, 384 passed, 0 expected failures, 398 total;0 failed, 0 skipped, 13 passed, "* ]]
    [[ -z $(sed -n 's/ *FAILED$//p' "$log" | grep -vx 'open::etxtbsy') ]]
}

# Random operations on one file at a time, compared with what it must hold after each. The names make the file an
# ordinary one, or a vector file, whose content moves when it is closed.
check_fsx() {
    local seed=0 ops name
    ops=$(either 4000 125000)
    for name in a b.f32 c d.npy e f.u8 g h.fvecs; do
        seed=$((seed + 1))
        echo "seed $seed, $name"
        fsx -f "$repo/scripts/posix/fsx.toml" -S "$seed" -N "$ops" -P "$work" "$dir/$name"
    done
    total "$((seed * ops)) operations, seeds 1 to $seed"
}

check_fio() {
    local job jobs=0
    for job in "$repo"/scripts/fio/verify-*.fio; do
        echo "== $job"
        DIR=$dir SIZE=$(either 16m 512m) fio "$job"
        jobs=$((jobs + $(grep -c '^\[' "$job") - 1))
    done
    total "$jobs jobs of $(either 16 512) MiB, every byte verified"
}

# Those of stress-ng's filesystem class that act on files below a directory. Not there: what mounts, what is about
# other filesystems (procfs, binderfs), and fiemap, verity, which a FUSE filesystem cannot have.
stressors=(access chdir chmod chown copy-file dentry dir dirdeep dirmany dnotify dup fallocate fcntl file-ioctl
    filename flock fpunch fsize fstat getdent handle hdd inotify io iomix lease link locka lockf lockofd mknod open
    readahead rename revio seek sendfile splice symlink sync-file touch utime xattr aiol msync)

check_stress() {
    local each=("${stressors[@]}") name words=()
    if $short; then
        # All at once: that they do not disturb each other is a test of its own.
        for name in "${each[@]}"; do words+=("--$name" 1); done
        stress-ng --temp-path "$dir" --verify --metrics-brief --timeout 10 "${words[@]}"
    else
        for name in "${each[@]}"; do
            timeout 120 stress-ng --temp-path "$dir" --verify --metrics-brief --timeout 5 "--$name" 2
        done
    fi
    ! grep -E 'stress-ng: (fail|error):' "$log"
    total "${#each[@]} stressors, $(either '10 s together' '5 s each')"
}

check_dbench() {
    timeout 300 dbench -D "$dir" -t "$(either 5 60)" 4
    total "4 clients, $(sed -n 's/^Throughput \([0-9.]*\) .*/\1 MB\/s/p' "$log")"
}

check_git() {
    export GIT_CONFIG_GLOBAL=$work/gitconfig GIT_CONFIG_NOSYSTEM=1
    git config --global user.name Tester
    git config --global user.email tester@example.org
    git config --global init.defaultBranch main
    git config --global safe.directory '*'
    local commits round i
    commits=$(either 5 50)
    git init -q "$dir/origin"
    cd "$dir/origin"
    for ((round = 1; round <= commits; round++)); do
        mkdir -p "d$((round % 10))"
        for i in {1..20}; do seq "$((round * i))" >"d$((round % 10))/$i"; done
        git add -A
        git commit -qm "round $round"
    done
    git clone -q --no-local "$dir/origin" "$dir/clone"
    git clone -q --no-local "$dir/clone" "$work/outside"
    local tree
    for tree in "$dir/origin" "$dir/clone" "$work/outside"; do
        cd "$tree"
        git gc -q --prune=now
        git fsck --strict --full --no-dangling
        [[ -z $(git status --porcelain) && $(git rev-list --count HEAD) == "$commits" ]]
    done
    [[ $(git -C "$dir/origin" rev-parse 'HEAD^{tree}') == $(git -C "$work/outside" rev-parse 'HEAD^{tree}') ]]
    diff -r --exclude .git "$dir/clone" "$work/outside"
    rm -rf "$work/outside"
    total "$commits commits, 2 clones, gc and fsck of each"
}

check_sqlite() {
    local mode rounds writers=4 w
    rounds=$(either 50 500)
    for mode in wal delete truncate persist; do
        local db=$dir/$mode.db pids=()
        sqlite3 "$db" "pragma journal_mode=$mode; create table t(w int, i int, v blob, primary key(w, i));"
        for ((w = 0; w < writers; w++)); do
            {
                echo ".timeout 60000"
                for ((i = 0; i < rounds; i++)); do
                    # Each transaction moves what the last one wrote: half of one would show.
                    echo "begin immediate; insert into t values($w, $i, randomblob(300));" \
                        "delete from t where w = $w and i = $i - 10; select count(*) from t where w = $w; commit;"
                done
            } | sqlite3 -bail "$db" >"$work/sql.$w" &
            pids+=($!)
        done
        for w in "${pids[@]}"; do wait "$w"; done
        [[ $(sqlite3 "$db" "pragma integrity_check") == ok ]]
        [[ $(sqlite3 "$db" "select count(*), count(distinct w) from t") == "$((writers * 10))|$writers" ]]
        for ((w = 0; w < writers; w++)); do [[ $(tail -n 1 "$work/sql.$w") == 10 ]]; done
        sqlite3 "$db" vacuum
        [[ $(sqlite3 "$db" "pragma integrity_check") == ok ]]
    done
    total "4 journal modes, $writers writers, $((4 * writers * rounds)) transactions"
}

check_cargo() {
    cd "$dir"
    cargo new --quiet --vcs none built
    cd built
    # Enough modules for the compiler to write many files at once, incrementally.
    local i
    for i in {1..30}; do
        echo "pub fn f(x: u64) -> u64 { (0..x).map(|y| y ^ $i).sum() }" >"src/m$i.rs"
        echo "mod m$i;"
    done >src/main.rs
    echo "fn main() { println!(\"{}\", m1::f(10)$(for i in {2..30}; do printf ' + m%s::f(10)' "$i"; done)); }" >>src/main.rs
    cargo build --quiet --offline
    local first
    first=$(cargo run --quiet --offline)
    # Nothing to do the second time: times are as the build left them.
    [[ $(cargo build --offline 2>&1 | grep -c Compiling) == 0 ]]
    sed -i 's/y ^ 7/y ^ 8/' src/m7.rs
    [[ $(cargo build --offline 2>&1 | grep -c Compiling) == 1 ]]
    [[ $(cargo run --quiet --offline) != "$first" ]]
    cargo build --quiet --offline --release
    cargo clean --quiet
    total "31 modules: built, unchanged, changed, optimised"
}

check_archives() {
    local src=$work/src files
    files=$(either 500 5000)
    mkdir "$src"
    cd "$src"
    # The same tree each time: sizes on both sides of every limit, links, holes, modes, owners, times, attributes.
    python3 - "$files" "$(either 100 5000)" <<'PYTHON'
import os, random, sys
random.seed(1)
sizes = [0, 1, 511, 4096, 16383, 16384, 16385, 65536, 135168, 135169, 300000]
for i in range(int(sys.argv[1])):
    d = f"{i % 7}/{i % 11}"
    os.makedirs(d, exist_ok=True)
    path = f"{d}/{i}" + random.choice(["", ".txt", ".f32", ".npy", ".vec", " \n\\", "é"])
    with open(path, "wb") as f:
        size = random.choice(sizes) if i % 5 == 0 else random.randrange(3000)
        f.write(random.randbytes(size))
    os.chmod(path, random.choice([0o644, 0o600, 0o755, 0o4755, 0o2711, 0o000]))
    if i % 9 == 0: os.link(path, path + ".link")
    if i % 10 == 0: os.symlink(random.choice([path, "nowhere", "/" + "x" * 300]), path + ".sym")
    if i % 12 == 0: os.setxattr(path, "user.kind", random.randbytes(random.randrange(200)))
    if i % 13 == 0: os.setxattr(d, "user.note", b"a directory")
    if i % 14 == 0: os.chown(path, random.randrange(70000), random.randrange(70000), follow_symlinks=False)
    if i % 15 == 0: os.mkfifo(path + ".fifo")
    os.utime(path, ns=(0, random.randrange(-10**18, 2 * 10**18)))
with open("sparse", "wb") as f:
    for at in (1 << 20, 40 << 20, int(sys.argv[2]) << 20):
        f.seek(at)
        f.write(b"end")
PYTHON
    chmod 0 0/0 && chmod 700 0/0
    list . >"$work/src.list"
    cp -a "$src" "$dir/cp"
    tar --xattrs -C "$src" -cSf "$work/in.tar" .
    mkdir "$dir/tar"
    tar --xattrs -C "$dir/tar" --warning=no-timestamp -xpSf "$work/in.tar"
    tar --xattrs -C "$dir/tar" --warning=no-timestamp -df "$work/in.tar"
    rsync -aHXS "$src/" "$dir/rsync/"
    [[ -z $(rsync -aHXSci "$src/" "$dir/rsync/") ]]
    local copy
    for copy in cp tar rsync; do
        list "$dir/$copy" >"$work/copy.list"
        cmp "$work/src.list" "$work/copy.list"
        # Next to nothing of it is there.
        [[ $(du -k "$dir/$copy/sparse" | cut -f1) -lt 1024 ]]
    done
    # ... and out again.
    cp -a "$dir/rsync" "$work/back"
    list "$work/back" >"$work/copy.list"
    cmp "$work/src.list" "$work/copy.list"
    rm -r "$work/back" "$work/src" "$work/in.tar" "$dir/cp"
    total "cp, tar, rsync of $(wc -l <"$work/src.list") facts; a hole of $(either 60 4960) MiB"
}

# The daemon keeps nothing of what the kernel has seen and forgotten again.
check_memory() {
    local files before after
    files=$(either 50000 1000000)
    before=$(awk '/RssAnon/ {print $2}' "/proc/$daemon/status")
    python3 - "$dir" "$files" <<'PYTHON'
import os, sys
for d in range(int(sys.argv[2]) // 1000):
    path = f"{sys.argv[1]}/{d}"
    os.mkdir(path)
    for i in range(1000):
        os.close(os.open(f"{path}/{i}", os.O_CREAT | os.O_WRONLY))
PYTHON
    # From the kernel's memory, from the daemon, and once more.
    [[ $(find "$dir" -type f -printf '%s\n' | wc -l) == "$files" ]]
    echo 2 >/proc/sys/vm/drop_caches
    [[ $(find "$dir" -type f -printf '%s\n' | wc -l) == "$files" ]]
    rm -r "$dir"
    mkdir "$dir"
    after=$(awk '/RssAnon/ {print $2}' "/proc/$daemon/status")
    total "$files files made, walked twice, removed: $((before / 1024)) MB before, $((after / 1024)) MB after"
    [[ $((after - before)) -lt 262144 ]]
}

# Runs a check in a directory of its own, in the background so that what does not end is ended, with all that it
# started. Says how it went.
run() {
    local name=$1 limit status=0 begun=$SECONDS verdict=ok
    limit=$(either 300 3600)
    log=$tools/log/$name
    dir=$mnt/$name
    rm -f "$work/total"
    mkdir "$dir"
    set -m
    (
        set -e
        "check_$name"
    ) </dev/null >"$log" 2>&1 &
    running=$!
    set +m
    while kill -0 "$running" 2>/dev/null && [[ $((SECONDS - begun)) -lt $limit ]]; do sleep 0.1; done
    if kill -0 "$running" 2>/dev/null; then
        echo "posix: not done after $limit s" >>"$log"
        kill -KILL -- "-$running" 2>/dev/null || true
    fi
    wait "$running" || status=$?
    running=
    is_well || { echo "posix: the mount is not well" >>"$log"; status=1; }
    [[ $status -eq 0 ]] || { verdict=FAILED; failed+=("$name"); }
    printf '%-10s %-7s %5s s  %s\n' "$name" "$verdict" "$((SECONDS - begun))" "$(cat "$work/total" 2>/dev/null)"
    # What is left of it goes, so that the next finds room.
    timeout 300 rm -rf "$dir" || failed+=("rm")
}

failed=()
begun=$SECONDS
start
printf 'vexfs %s (%s), Linux %s, store on %s\n\n' "$(cat "$mnt/.vexfs/version")" \
    "$(git rev-parse --short HEAD 2>/dev/null || echo 'no commit')" "$(uname -r)" "$(stat -fc %T "$work")"
for name in "${checks[@]}"; do run "$name"; done

stop || failed+=("unmount")
start
is_well || failed+=("health after a remount")
stop || failed+=("second unmount")
printf '\n%s checks, %s failed, %s s\n' "${#checks[@]}" "${#failed[@]}" "$((SECONDS - begun))"
for name in "${failed[@]}"; do
    echo "posix: $name failed" >&2
    [[ ! -f $tools/log/$name ]] || tail -n 20 "$tools/log/$name" >&2
done
[[ ${#failed[@]} -eq 0 ]]
