//! Programs that know nothing of vectors: copying, archiving, versioning, building, editing.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use crate::harness::{Mount, Random, f32_bytes, npy, shell};

/// Makes a tree outside the mount, with everything that a copy has to keep.
fn source_tree(mount: &Mount) {
    let src = mount.outside("src");
    for dir in ["", "docs", "docs/sub", "empty"] {
        fs::create_dir(src.join(dir)).unwrap();
    }
    let mut random = Random(5);
    for i in 0..20 {
        fs::write(src.join(format!("docs/{i}.f32")), f32_bytes(&random.vector(8))).unwrap();
    }
    let rows: Vec<_> = (0..50).map(|_| random.vector(8)).collect();
    fs::write(src.join("docs/sub/rows.npy"), npy(&rows)).unwrap();
    fs::write(src.join("docs/bad.f32"), b"not a vector").unwrap();
    fs::write(src.join("docs/large.bin"), vec![7; 300_000]).unwrap();
    shell(
        &src,
        "ln -s docs/0.f32 link; ln -s nowhere dangling; ln docs/1.f32 docs/sub/one.f32; touch docs/zero
         printf 'a name' > $'odd\\nname'; chmod 751 docs/sub; chmod 4640 docs/2.f32; chmod 400 docs/zero
         setfattr -n user.lang -v en docs/0.f32; setfattr -n user.blob -v 0x00ff0a docs/sub/rows.npy
         setfattr -n user.kind -v text docs
         truncate -s 2M docs/sparse; printf end >> docs/sparse
         touch -d '1965-04-03 02:01:00.123456789' docs/3.f32; touch -d '2001-02-03 04:05:06.7' docs/sub docs empty",
    );
}

/// Everything about a tree that a copy has to keep, as text: kinds, modes, sizes, times to the nanosecond, targets,
/// link counts, attributes and checksums.
const LIST: &str = "list() { (cd $1
     find . -mindepth 1 \\( -type l -printf '%p l %l\\n' -o -type d -printf '%p d %m %T@\\n' -o -printf '%p %y %m %s %T@ %n\\n' \\) | LC_ALL=C sort
     find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
     getfattr -Rhd -m- . 2>/dev/null | sed '/^$/d' | LC_ALL=C sort); }; ";

fn assert_same_trees(mount: &Mount, a: &str, b: &str) {
    let script = format!("{LIST} list {a} > a.list; list {b} > b.list; diff a.list b.list");
    shell(&mount.outside("."), &script);
    let lines = fs::read_to_string(mount.outside("a.list")).unwrap().lines().count();
    assert!(lines > 60, "the list has {lines} lines");
    shell(&mount.outside("."), &format!("diff -r --no-dereference {a} {b}"));
}

/// What the vectors of a copy of the tree answer.
fn assert_indexed(mount: &Mount, dir: &str) {
    assert_eq!(mount.attribute(dir, "user.vexfs.count"), "70", "{dir}");
    assert_eq!(mount.similar(&format!("{dir}/0.f32")).len(), 10);
    assert!(mount.status(&format!("{dir}/bad.f32")).starts_with("invalid: "));
}

#[test]
fn cp_copies_a_tree_in_and_out_unchanged() {
    let mount = Mount::new();
    source_tree(&mount);
    shell(&mount.outside("."), "cp -a src mnt/copy");
    assert_same_trees(&mount, "src", "mnt/copy");
    assert_eq!(mount.attribute("copy/docs", "user.vexfs.count"), "70");
    shell(&mount.outside("."), "cp -a mnt/copy back");
    assert_same_trees(&mount, "src", "back");
    shell(&mount.outside("."), "cp -a mnt/copy/docs mnt/docs");
    assert_indexed(&mount, "docs");
    shell(&mount.outside("."), "rm -r mnt/copy; test ! -e mnt/copy");
}

#[test]
fn tar_archives_a_tree_with_its_attributes_and_restores_it() {
    let mount = Mount::new();
    source_tree(&mount);
    shell(
        &mount.outside("."),
        "tar --xattrs -C src -cf in.tar .; mkdir mnt/t; tar --xattrs -C mnt/t -xpf in.tar
         tar --xattrs -C mnt/t -cf out.tar .; mkdir back; tar --xattrs -C back -xpf out.tar",
    );
    assert_same_trees(&mount, "src", "mnt/t");
    assert_same_trees(&mount, "src", "back");
    let listed = shell(&mount.outside("."), "tar --xattrs -tvvf out.tar");
    assert!(!listed.contains(".vexfs") && !listed.contains("user.vexfs"), "{listed}");
    assert_eq!(mount.attribute("t/docs", "user.vexfs.count"), "70");
}

#[test]
fn rsync_brings_a_tree_in_and_out_and_then_finds_nothing_to_do() {
    let mount = Mount::new();
    source_tree(&mount);
    shell(&mount.outside("."), "rsync -aXH src/ mnt/r/; rsync -aXH mnt/r/ back/");
    assert_same_trees(&mount, "src", "mnt/r");
    assert_same_trees(&mount, "src", "back");
    assert_eq!(shell(&mount.outside("."), "rsync -aXHci src/ mnt/r/; rsync -aXHci mnt/r/ back/"), "");
    shell(&mount.outside("."), "rsync -aXH src/docs/ mnt/docs/");
    assert_indexed(&mount, "docs");
    // A changed file is replaced whole, a deleted one goes.
    let similar = mount.similar("docs/0.f32");
    shell(
        &mount.outside("."),
        "cp src/docs/0.f32 src/docs/5.f32; touch -d 2001-01-01 src/docs/5.f32; rm src/docs/6.f32; rsync -aXHc --delete src/docs/ mnt/docs/",
    );
    assert_ne!(mount.similar("docs/0.f32"), similar);
    assert_eq!(mount.similar("docs/0.f32")[0], "5.f32");
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "69");
    shell(
        &mount.outside("."),
        "rsync -a --inplace --no-whole-file src/docs/ mnt/docs/; cmp src/docs/5.f32 mnt/docs/5.f32",
    );
}

#[test]
fn git_clones_commits_and_checks_a_repository() {
    let mount = Mount::new();
    shell(
        &mount.outside("."),
        "export GIT_CONFIG_GLOBAL=$PWD/config GIT_CONFIG_NOSYSTEM=1
         git config --global user.name Tester; git config --global user.email t@example.org
         git config --global init.defaultBranch main; git config --global safe.directory '*'
         git init -q repo; cd repo; mkdir a; seq 1000 > a/numbers; head -c 100000 /dev/zero > zeroes
         ln -s a/numbers link; printf x > run; chmod +x run; git add -A; git commit -qm first
         seq 2000 > a/numbers; git commit -qam second; git branch other HEAD~1; git gc -q; cd ..
         git clone -q repo mnt/clone; cd mnt/clone; git fsck --strict; git status --porcelain > ../status
         test ! -s ../status; git checkout -q -b work; echo more >> a/numbers; git mv run runs; git commit -qam third
         git checkout -q origin/other; test $(wc -l < a/numbers) = 1000; git checkout -q work; git gc -q; git fsck
         git worktree add -q ../tree origin/main; cmp ../tree/a/numbers ../../repo/a/numbers
         git push -q origin work; git -C ../../repo log -1 --format=%s work > ../pushed",
    );
    assert_eq!(fs::read_to_string(mount.path("pushed")).unwrap(), "third\n");
    assert!(!shell(&mount.path("clone"), "git -c safe.directory='*' ls-files -o").contains("vexfs"));
}

#[test]
fn cargo_builds_and_runs_a_program_inside_the_mount() {
    let mount = Mount::new();
    let said = shell(
        &mount.root(),
        "export CARGO_HOME=$PWD/../cargo CARGO_NET_OFFLINE=true; unset CARGO_TARGET_DIR RUSTFLAGS RUSTC_WRAPPER
         cargo new -q --vcs none hello; cd hello; cargo build -q --offline; ./target/debug/hello
         echo 'fn main() { println!(\"again\"); }' > src/main.rs; cargo build -q --offline; ./target/debug/hello
         cargo clean -q; test ! -e target",
    );
    assert_eq!(said, "Hello, world!\nagain\n");
}

#[test]
fn editors_that_write_beside_and_rename_change_the_neighbours() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/x.f32", &[1.0, 0.0]);
    mount.put("docs/y.f32", &[0.0, 1.0]);
    let nearest = || mount.similar("docs/a.vec")[0].clone();
    let save = |script: &str, want: &str| {
        shell(&mount.path("docs"), script);
        assert_eq!(nearest(), want, "after: {script}");
        assert_eq!(mount.attribute("docs", "user.vexfs.count"), "3", "after: {script}");
    };
    save("echo '1 0.1' > a.vec", "x.f32");
    save("sed -i 's/1 0.1/0.1 1/' a.vec", "y.f32");
    save("sed -i.bak 's/0.1 1/1 0.2/' a.vec; test -e a.vec.bak", "x.f32");
    // As vim does with backupcopy=no, and with backupcopy=yes.
    save(
        "touch .a.vec.swp 4913; rm 4913; mv a.vec a.vec~; echo '0 1' > a.vec; sync a.vec; rm a.vec~ .a.vec.swp",
        "y.f32",
    );
    save("cp -p a.vec a.vec~; echo '1 0' > a.vec; rm a.vec~", "x.f32");
    // As emacs and most others do.
    save("echo '0.3 1' > '#a.vec#'; echo '0.2 1' > .#a.vec.tmp; mv .#a.vec.tmp a.vec; rm '#a.vec#'", "y.f32");
    save(
        "cp x.f32 .x.tmp; printf '\\0\\0\\0\\0\\0\\0\\200\\77' > x.f32; mv .x.tmp x.f32; echo '1 0' > a.vec",
        "x.f32",
    );
    assert_eq!(mount.status("docs/a.vec"), "indexed");
}

#[test]
fn vim_saves_a_vector_when_it_is_installed() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/x.f32", &[1.0, 0.0]);
    mount.put("docs/y.f32", &[0.0, 1.0]);
    fs::write(mount.path("docs/a.vec"), "1 0\n").unwrap();
    if shell(&mount.root(), "command -v vim || true").is_empty() {
        eprintln!("vim_saves_a_vector_when_it_is_installed: not checked, there is no vim");
        return;
    }
    for backupcopy in ["no", "yes", "auto"] {
        for (from, to, nearest) in [("1 0", "0 1", "y.f32"), ("0 1", "1 0", "x.f32")] {
            let script = format!(
                "vim -u NONE -es -c 'set backup writebackup backupcopy={backupcopy}' -c 's/{from}/{to}/' -c 'x' a.vec < /dev/null"
            );
            shell(&mount.path("docs"), &script);
            assert_eq!(fs::read_to_string(mount.path("docs/a.vec")).unwrap(), format!("{to}\n"));
            assert_eq!(mount.similar("docs/a.vec")[0], nearest, "backupcopy={backupcopy}");
        }
    }
}

#[test]
fn find_du_and_df_see_an_ordinary_tree() {
    let mount = Mount::new();
    source_tree(&mount);
    shell(&mount.outside("."), "cp -a src mnt/copy");
    let both = |script: &str| {
        let (src, copy) = (mount.outside("src"), mount.path("copy"));
        assert_eq!(shell(&src, script), shell(&copy, script), "{script}");
    };
    both("find . | LC_ALL=C sort");
    both("find . -type d -empty; find . -links +1 | LC_ALL=C sort; find . -size +100k | LC_ALL=C sort");
    both("du -b docs/large.bin docs/0.f32 | cut -f1; ls -1 | wc -l");
    assert!(!shell(&mount.root(), "find . -name '.vexfs*'; ls -a; echo * .*").contains(".vexfs"));
    let kib: u64 = shell(&mount.root(), "du -sk copy/docs/large.bin | cut -f1").trim().parse().unwrap();
    assert!((290..600).contains(&kib), "{kib} KiB for 300,000 bytes");
    let df = shell(&mount.root(), "df -P . | tail -1");
    assert!(df.trim_end().ends_with(mount.root().to_str().unwrap()), "{df}");
    assert_eq!(shell(&mount.root(), "stat -f -c %l ."), "255\n");
}

#[test]
fn small_writes_and_reads_of_dd_add_up() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/x.f32", &[1.0, 0.5]);
    shell(&mount.path("docs"), "dd if=x.f32 of=y.f32 bs=1 status=none; cmp x.f32 y.f32");
    assert_eq!(mount.similar("docs/x.f32"), ["y.f32"]);
    shell(
        &mount.root(),
        "seq 3000 > ../numbers; dd if=../numbers of=a bs=7 status=none; dd if=a of=../b bs=13 status=none; cmp ../b ../numbers
         dd if=/dev/zero of=a bs=1 count=1 seek=20000 conv=notrunc status=none; test $(stat -c %s a) = 20001
         dd if=a of=c bs=4096 skip=1 oflag=append conv=notrunc status=none; cmp c <(tail -c +4097 a)
         dd if=a of=s bs=4096 conv=sparse status=none; cmp a s; dd if=a of=d bs=1k conv=fsync status=none; cmp a d",
    );
}

#[test]
fn a_database_of_locks_and_syncs_survives_a_shell_loop() {
    let mut mount = Mount::new();
    shell(
        &mount.root(),
        "for i in 1 2 3 4; do (for j in $(seq 25); do flock lock sh -c 'n=$(cat n 2>/dev/null || echo 0); echo $((n + 1)) > n.new; sync n.new; mv n.new n'; done) & done; wait",
    );
    mount.remount();
    assert_eq!(fs::read_to_string(mount.path("n")).unwrap(), "100\n");
    assert_eq!(fs::metadata(mount.path("n")).unwrap().nlink(), 1);
}
