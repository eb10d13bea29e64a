//! What operations allocate once they have been done before: nothing of ours, and what the catalog's engine takes for
//! each record that it reads.
#![expect(unsafe_code, reason = "an allocator is a trait of unsafe methods")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use vexfs::catalog::{Catalog, Table};
use vexfs::distance::Metric;
use vexfs::index::Query;
use vexfs::index::flat::Matrix;
use vexfs::index::hnsw::{Beam, Hnsw, Params, SearchScratch};
use vexfs::namespace::Ino;
use vexfs::search::{Options, Request, Target, condition};
use vexfs::volume::{DirEntry, XattrMode};

use crate::support::*;

thread_local! {
    static ALLOCATED: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, which counts what each thread asks for.
struct Counting;

// SAFETY: every method hands its arguments to the system's allocator, whose contract is the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) };
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn count() {
    // A thread that ends has no counter any more.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + 1));
}

/// Most allocations of one call of `work` on this thread, after some that are not counted.
fn allocations<T>(mut work: impl FnMut() -> T) -> u64 {
    for _ in 0..300 {
        work();
    }
    let counted = (0..300).map(|_| {
        let before = ALLOCATED.get();
        work();
        ALLOCATED.get() - before
    });
    counted.max().unwrap()
}

/// A volume with a directory of some files, whose records are in memory.
struct Filled {
    fs: Fs,
    dir: Ino,
}

const FILES: usize = 40;

/// One of them.
const NAME: &[u8] = b"a-file-with-a-long-name-0007";
const IN_CATALOG: &str = "d/a-file-with-a-long-name-0007";

impl Filled {
    fn new() -> Self {
        let fs = Fs::new();
        fs.mkdir("d").unwrap();
        for number in 0..FILES {
            fs.put(&format!("d/a-file-with-a-long-name-{number:04}"), &pattern(1500, 1));
        }
        fs.put("d/blob", &pattern(100_000, 2));
        fs.mkdir("v").unwrap();
        for number in 0..FILES as u8 {
            let values = (0..64u8).map(|at| f32::from(at.wrapping_mul(number).wrapping_add(3)));
            fs.put(&format!("v/{number}.f32"), &values.flat_map(f32::to_le_bytes).collect::<Vec<_>>());
        }
        let dir = fs.ino("d").unwrap();
        // The engine has all of it.
        fs.volume.sync().unwrap();
        Self { fs, dir }
    }
}

/// What reading one record costs the engine.
fn engine_get(key: &[u8], value: &[u8]) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let mut batch = catalog.batch();
    batch.put(Table::Dentries, key, value);
    batch.commit().unwrap();
    catalog.persist().unwrap();
    allocations(|| catalog.get(Table::Dentries, key).unwrap())
}

/// What listing a directory of `entries` files costs the engine.
fn engine_scan(entries: usize) -> u64 {
    let dir = tempfile::tempdir().unwrap();
    let catalog = Catalog::open(dir.path()).unwrap();
    let mut batch = catalog.batch();
    for number in 0..entries {
        batch.put(Table::Dentries, format!("{number:036}"), [1; 12]);
    }
    batch.commit().unwrap();
    catalog.persist().unwrap();
    allocations(|| catalog.scan(Table::Dentries, b"0", Some(b"0")).count())
}

#[test]
fn reading_allocates_nothing_but_what_the_engine_does() {
    let Filled { fs, dir } = Filled::new();
    let volume = &fs.volume;
    let ino = volume.lookup(&ROOT, dir, NAME).unwrap().ino;
    volume.setxattr(&ROOT, ino, b"user.note", b"value", XattrMode::Either).unwrap();
    // An inode's number is a key that the engine needs no memory for.
    assert_eq!(engine_get(&[1; 8], &[1; 120]), 0);
    assert_eq!(allocations(|| volume.getattr(ino).unwrap()), 0);
    assert_eq!(allocations(|| volume.getxattr(&ROOT, ino, b"user.note").unwrap()), 0);
    // A name is a longer one.
    let of_engine = engine_get(&[1; 36], &[1; 12]);
    assert_eq!(of_engine, 1);
    assert_eq!(allocations(|| volume.lookup(&ROOT, dir, NAME).unwrap()), of_engine);
    assert_eq!(
        allocations(|| volume.lookup(&ROOT, dir, b"a name that is not there").unwrap_err()),
        of_engine
    );
    for path in [IN_CATALOG, "d/blob", "v/1.f32"] {
        let handle = fs.open(path, READ).unwrap();
        let mut read = || {
            let mut into = volume.buffers().take(4096);
            volume.read(&ROOT, handle, 0, 4096, &mut into).unwrap();
        };
        assert_eq!(allocations(&mut read), 0, "{path}");
        fs.close(handle);
    }
}

#[test]
fn writing_into_a_blob_allocates_nothing_and_a_commit_little() {
    let Filled { fs, .. } = Filled::new();
    let write = |path: &str| {
        let handle = fs.open(path, WRITE).unwrap();
        let data = [7; 1000];
        let allocated = allocations(|| fs.volume.write(&ROOT, handle, 5, &data).unwrap());
        fs.close(handle);
        allocated
    };
    assert_eq!(write("d/blob"), 0);
    // Each write is a commit here: the change, its keys, its values, and what the engine makes of them.
    let allocated = write(IN_CATALOG);
    assert!(allocated <= 20, "{allocated}");
}

#[test]
fn a_page_of_a_listing_costs_what_the_engine_needs_for_it() {
    let Filled { fs, dir } = Filled::new();
    let handle = fs.volume.open_dir(&ROOT, dir).unwrap();
    let mut list = || {
        let mut count = 0;
        let mut visit = |_: &DirEntry<'_>| {
            count += 1;
            true
        };
        fs.volume.read_dir(&ROOT, handle, 0, &mut visit).unwrap();
        assert_eq!(count, FILES + 3);
    };
    let (allocated, of_engine) = (allocations(&mut list), engine_scan(FILES + 1));
    assert!(allocated <= of_engine, "{allocated}, the engine {of_engine}");
    fs.volume.release_dir(handle);
}

#[test]
fn a_search_allocates_its_answer_and_little_besides() {
    let Filled { fs, .. } = Filled::new();
    let base = fs.ino("v").unwrap();
    let target = Target::Vectors { dim: 64, values: vec![1.0; 64] };
    let request =
        |k| Request { target: target.clone(), options: Options { k: Some(k), ..Options::default() } };
    let search = |k| {
        let request = request(k);
        allocations(|| fs.volume.search(&ROOT, base, &request).unwrap())
    };
    let (ten, thirty) = (search(10), search(30));
    println!("{ten} {thirty}");
    assert!(ten <= 30 && thirty <= ten + 4, "{ten} for 10 hits, {thirty} for 30");
    // Once its rows are known a condition costs nothing but itself.
    let mut under = request(10);
    under.options.condition = Some(Arc::new(condition::parse("lang!=en").unwrap()));
    let under = allocations(|| fs.volume.search(&ROOT, base, &under).unwrap());
    assert!(under <= ten, "{under} under a condition, {ten} without");
    // An answer that is known is copied.
    let ino = fs.ino("v/3.f32").unwrap();
    let again = allocations(|| fs.volume.getxattr(&ROOT, ino, b"user.vexfs.similar").unwrap());
    assert!(again <= 16, "{again}");
}

#[test]
fn a_search_of_the_index_allocates_the_list_that_it_returns() {
    let matrix = Matrix::new(8, (0..4000).map(|at| ((at * 37) % 101) as f32).collect());
    let graph = Hnsw::new(Metric::L2, 8, Params::default()).unwrap();
    for row in matrix.row_ids() {
        graph.insert(row, &matrix).unwrap();
    }
    let vector = [3.0; 8];
    let query = Query::new(Metric::L2, &vector);
    let mut scratch = SearchScratch::new();
    let mut search =
        || graph.search(&query, Beam::new(10, 50), &matrix, |_| true, &mut scratch, &mut || true).neighbors;
    let allocated = allocations(&mut search);
    assert!(allocated <= 1, "{allocated}");
}
