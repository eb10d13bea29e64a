//! The doors to a search, and that all of them show the same answer.

use std::collections::BTreeSet;
use std::fs::{self, File, Permissions};
use std::io::{IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use vexfs::fuse::ask::ask;

use crate::harness::{Mount, Random, VEXFS, errno, f32_bytes, is_root, npy, paths, run, shell, text};

const DIM: usize = 6;

/// A user who owns nothing.
const NOBODY: u32 = 65534;

/// One hit, as every door shows it.
#[derive(Clone, Debug, PartialEq)]
struct Hit {
    path: String,
    row: u32,
    id: u32,
    distance: f32,
}

fn hits(answer: &Value) -> Vec<Hit> {
    let number = |hit: &Value, key: &str| u32::try_from(hit[key].as_u64().unwrap()).unwrap();
    let list = answer["hits"].as_array().unwrap_or_else(|| panic!("no hits in {answer}"));
    for (i, hit) in list.iter().enumerate() {
        assert_eq!(hit["rank"], i + 1);
    }
    list.iter()
        .map(|hit| Hit {
            path: hit["path"].as_str().unwrap().to_owned(),
            row: number(hit, "row"),
            id: number(hit, "id"),
            distance: hit["distance"].to_string().parse().unwrap(),
        })
        .collect()
}

/// The records of a binary answer, as (id, distance).
fn records(bytes: &[u8]) -> Vec<(u32, f32)> {
    assert_eq!(bytes.len() % 8, 0);
    bytes
        .chunks(8)
        .map(|record| {
            let (id, distance) = record.split_at(4);
            (u32::from_le_bytes(id.try_into().unwrap()), f32::from_le_bytes(distance.try_into().unwrap()))
        })
        .collect()
}

fn ids_and_distances(hits: &[Hit]) -> Vec<(u32, f32)> {
    hits.iter().map(|hit| (hit.id, hit.distance)).collect()
}

fn configure(mount: &Mount, dir: &str, config: &str) {
    fs::write(mount.path(dir).join(".vexfs/config"), config).unwrap();
}

/// A collection with single files, rows and a subdirectory.
fn collection(mount: &Mount, metric: &str) -> Vec<f32> {
    let mut random = Random(42);
    mount.mkdir("docs");
    mount.mkdir("docs/sub");
    configure(mount, "docs", &format!("[collection]\nmetric = \"{metric}\"\n"));
    for i in 0..15 {
        mount.put(&format!("docs/{i:02}.f32"), &random.vector(DIM));
        mount.put(&format!("docs/sub/{i:02}.f32"), &random.vector(DIM));
    }
    let rows: Vec<_> = (0..20).map(|_| random.vector(DIM)).collect();
    fs::write(mount.path("docs/sub/rows.npy"), npy(&rows)).unwrap();
    random.vector(DIM)
}

fn header(rows: usize, dim: usize, k: usize) -> Vec<u8> {
    format!("{{\"dtype\":\"f32\",\"rows\":{rows},\"dim\":{dim},\"k\":{k}}}\n").into_bytes()
}

fn search(mount: &Mount, args: &[&str]) -> Output {
    run(Command::new(VEXFS).arg("search").args(args).current_dir(mount.root()))
}

fn code(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What `results.tsv` says of one query.
fn tsv_hits(tsv: &[u8]) -> Vec<Hit> {
    let text = text(tsv);
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("query\trank\tdistance\tscore\tpath\trow\tid"));
    lines
        .map(|line| {
            let fields: Vec<_> = line.split('\t').collect();
            Hit {
                path: fields[4].into(),
                row: fields[5].parse().unwrap(),
                id: fields[6].parse().unwrap(),
                distance: fields[2].parse().unwrap(),
            }
        })
        .collect()
}

#[test]
fn every_door_gives_the_same_answer_to_a_vector() {
    let mount = Mount::new();
    for metric in ["l2", "ip", "cosine"] {
        let query = collection(&mount, metric);
        let want = mount.ask_json("docs", &json!({"vector": query, "k": 12}));
        assert_eq!((&want["schema"], &want["k"], &want["metric"]), (&json!(1), &json!(12), &json!(metric)));
        assert_eq!(
            (&want["exact"], &want["complete"], &want["pending"]),
            (&json!(true), &json!(true), &json!(0))
        );
        let want = hits(&want);
        assert_eq!(want.len(), 12);
        assert!(want.is_sorted_by(|a, b| a.distance <= b.distance));

        let binary = mount.ask("docs", &[header(1, DIM, 12), f32_bytes(&query)].concat());
        assert_eq!(records(&binary), ids_and_distances(&want), "{metric}: binary");

        fs::write(mount.path("docs/.vexfs/queries/q.f32"), f32_bytes(&query)).unwrap();
        let results = mount.path("docs/.vexfs/@k=12/results/q.f32");
        let json: Value = serde_json::from_slice(&read(&results.join("results.json"))).unwrap();
        assert_eq!(hits(&json), want, "{metric}: results.json");
        assert_eq!(tsv_hits(&read(&results.join("results.tsv"))), want, "{metric}: results.tsv");

        let vector = mount.outside("q.f32");
        fs::write(&vector, f32_bytes(&query)).unwrap();
        let output = search(&mount, &["docs", "--vector", vector.to_str().unwrap(), "-k", "12", "--json"]);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((hits(&json), &json["schema"]), (want.clone(), &json!(1)), "{metric}: vexfs search");
        fs::remove_dir_all(mount.path("docs")).unwrap();
    }
}

#[test]
fn every_door_gives_the_same_answer_to_a_file() {
    let mount = Mount::new();
    collection(&mount, "l2");
    for like in ["03.f32", "sub/04.f32", "sub/rows.npy#7"] {
        let (file, row) = like.split_once('#').map_or((like, None), |(file, row)| (file, Some(row)));
        let mut request = json!({"like": file, "k": 5});
        if let Some(row) = row {
            request["row"] = row.parse::<u32>().unwrap().into();
        }
        let want = hits(&mount.ask_json("docs", &request));
        assert_eq!(want.len(), 5);
        let itself = |hit: &Hit| hit.path == file && row.is_none_or(|row| row == hit.row.to_string());
        assert!(!want.iter().any(itself), "a file is not its own neighbour");

        let results = mount.path("docs/.vexfs/@k=5/similar").join(like);
        let json: Value = serde_json::from_slice(&read(&results.join("results.json"))).unwrap();
        assert_eq!(hits(&json), want, "{like}: results.json");
        assert_eq!(tsv_hits(&read(&results.join("results.tsv"))), want, "{like}: results.tsv");

        let output = search(&mount, &["docs", "--like", &format!("docs/{like}"), "-k", "5", "--json"]);
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(hits(&json), want, "{like}: vexfs search");
    }
    // The attribute asks in the file's own directory.
    let want: Vec<_> = hits(&mount.ask_json("docs/sub", &json!({"like": "04.f32", "k": 5})));
    let lines: String = want
        .iter()
        .map(|hit| match hit.path.as_str() {
            "rows.npy" => format!("{}\trows.npy#{}\n", hit.distance, hit.row),
            path => format!("{}\t{path}\n", hit.distance),
        })
        .collect();
    assert_eq!(mount.attribute("docs/sub/04.f32", "user.vexfs.similar.5"), lines);
    let ten = mount.attribute("docs/sub/04.f32", "user.vexfs.similar");
    assert!(ten.starts_with(&lines) && ten.lines().count() == 10, "{ten}");
}

#[test]
fn a_batch_gives_each_query_the_answer_that_it_gets_alone() {
    let mount = Mount::new();
    collection(&mount, "cosine");
    let mut random = Random(3);
    let queries: Vec<_> = (0..25).map(|_| random.vector(DIM)).collect();
    let alone: Vec<_> = queries
        .iter()
        .map(|query| hits(&mount.ask_json("docs", &json!({"vector": query, "k": 4}))))
        .collect();
    let want: Vec<_> = alone.iter().flat_map(|hits| ids_and_distances(hits)).collect();

    let body: Vec<u8> = queries.iter().flat_map(|query| f32_bytes(query)).collect();
    assert_eq!(records(&mount.ask("docs", &[header(25, DIM, 4), body.clone()].concat())), want);

    let fvecs: Vec<u8> =
        queries.iter().flat_map(|query| [&6u32.to_le_bytes()[..], &f32_bytes(query)].concat()).collect();
    for (name, content) in [("batch.npy", npy(&queries)), ("batch.fvecs", fvecs), ("batch", body)] {
        fs::write(mount.path("docs/.vexfs/queries").join(name), content).unwrap();
        let results = mount.path("docs/.vexfs/@k=4/results").join(name);
        let json: Value = serde_json::from_slice(&read(&results.join("results.json"))).unwrap();
        assert_eq!(json["schema"], 1);
        let got: Vec<_> = json["results"].as_array().unwrap().iter().map(hits).collect();
        assert_eq!(got, alone, "{name}");
        let ids = read(&results.join("ids.ivecs"));
        let distances = read(&results.join("distances.fvecs"));
        assert_eq!((ids.len(), distances.len()), (25 * 20, 25 * 20));
        for (i, (ids, distances)) in ids.chunks(20).zip(distances.chunks(20)).enumerate() {
            assert_eq!((&ids[..4], &distances[..4]), (&4u32.to_le_bytes()[..], &4u32.to_le_bytes()[..]));
            let interleaved: Vec<u8> = ids[4..]
                .chunks(4)
                .zip(distances[4..].chunks(4))
                .flat_map(|(id, d)| [id, d].concat())
                .collect();
            assert_eq!(records(&interleaved), ids_and_distances(&alone[i]), "{name}, query {i}");
        }
        let tsv = text(&read(&results.join("results.tsv")));
        assert_eq!(tsv.lines().count(), 101);
        assert!(tsv.lines().last().unwrap().starts_with("24\t4\t"));
    }
}

#[test]
fn a_batch_that_takes_long_is_shared_with_idle_cores() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let mut random = Random(4);
    let rows: Vec<_> = (0..4000).map(|_| random.vector(128)).collect();
    fs::write(mount.path("docs/rows.npy"), npy(&rows)).unwrap();
    let body =
        |queries: &[Vec<f32>]| -> Vec<u8> { queries.iter().flat_map(|query| f32_bytes(query)).collect() };
    let ask = |queries: &[Vec<f32>]| {
        records(&mount.ask("docs", &[header(queries.len(), 128, 3), body(queries)].concat()))
    };
    // Each query is a row, so that its own neighbours are known. The first tells how long one takes.
    let alone: Vec<_> = rows[..400].iter().flat_map(|query| ask(std::slice::from_ref(query))).collect();
    assert!(alone.chunks(3).enumerate().all(|(row, hits)| hits[0].0 == u32::try_from(row).unwrap()));
    assert_eq!(ask(&rows[..400]), alone, "in the order of the queries");
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    let helped = metrics.lines().find_map(|line| line.strip_prefix("vexfs_search_helpers ")).unwrap();
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!(helped != "0", cores > 1, "{helped} helpers on {cores} cores");
    // A query that is refused refuses the batch, whoever has met it.
    let mut refused = rows[..400].to_vec();
    refused[390][7] = f32::NAN;
    let mut file = mount.query_file("docs");
    file.write_all(&[header(400, 128, 3), body(&refused)].concat()).unwrap();
    assert_eq!(errno(file.read(&mut [0; 8])), libc::EDOM);
}

/// Asks with one system call, with a buffer of `size` bytes.
fn ask_at_once(query: &File, request: &[u8], size: usize) -> std::io::Result<Vec<u8>> {
    let mut buffer = request.to_vec();
    buffer.resize(size, 0);
    let length = ask(query, &mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}

#[test]
fn one_system_call_asks_and_answers() {
    let mount = Mount::new();
    let query = collection(&mount, "cosine");
    fs::create_dir(mount.path(".vexfs/snapshots/then")).unwrap();
    let binary = [header(1, DIM, 7), f32_bytes(&query)].concat();
    for dir in ["docs", "docs/sub", ".vexfs/snapshots/then/docs"] {
        let want = mount.ask(dir, &binary);
        let file = mount.query_file(dir);
        assert_eq!(ask_at_once(&file, &binary, 4000).unwrap(), want, "{dir}");
        let json = format!("{}\n", json!({"vector": query, "k": 3}));
        let answer = ask_at_once(&file, json.as_bytes(), 16_383).unwrap();
        assert_eq!(hits(&serde_json::from_slice(&answer).unwrap()).len(), 3, "{dir}");
    }
    // The conversation of the handle is not touched, and threads need not wait for each other's answers.
    let mut file = mount.query_file("docs");
    let want = mount.ask("docs", &binary);
    file.write_all(&binary[..40]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..50).for_each(|_| assert_eq!(ask_at_once(&file, &binary, 999).unwrap(), want)));
        }
    });
    file.write_all(&binary[40..]).unwrap();
    let mut answer = vec![0; want.len()];
    file.read_exact(&mut answer).unwrap();
    assert_eq!(answer, want);
}

#[test]
fn what_one_system_call_cannot_answer_is_refused() {
    let mount = Mount::new();
    let query = collection(&mount, "cosine");
    let file = mount.query_file("docs");
    let one = [header(1, DIM, 7), f32_bytes(&query)].concat();
    let two = [header(2, DIM, 7), f32_bytes(&query), f32_bytes(&query)].concat();
    let wrong = [header(1, DIM + 1, 7), f32_bytes(&[&query[..], &[1.0]].concat())].concat();
    let infinite = [header(1, DIM, 7), f32_bytes(&[f32::INFINITY; DIM])].concat();
    let refused = |request: &[u8], size| errno(ask_at_once(&file, request, size));
    assert_eq!(refused(&two, 500), libc::EINVAL);
    assert_eq!(refused(&one[..one.len() - 1], one.len() - 1), libc::EINVAL);
    assert_eq!(refused(&wrong, 500), libc::EINVAL);
    assert_eq!(refused(&infinite, 500), libc::EDOM);
    assert_eq!(
        refused(b"{\"like\":\"00.f32\"}\n", 100),
        libc::EMSGSIZE,
        "the answer is longer than 100 bytes"
    );
    let unknown = ask_at_once(&file, b"{\"like\":\"missing.f32\"}\n", 400).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&unknown).unwrap()["error"]["code"], "ENOENT");
    // Other files do not have this command, and the file has no other.
    for other in ["docs/00.f32", "docs", "docs/.vexfs/stats.json", ".vexfs"] {
        let other = File::open(mount.path(other)).unwrap();
        assert_eq!(errno(ask_at_once(&other, &one, 500)), libc::ENOTTY);
    }
    assert!(!file.is_terminal(), "which is asked with a command as well");
    assert_eq!(ask_at_once(&file, &one, 500).unwrap().len(), 7 * 8);
}

#[test]
fn a_listing_shows_ranked_links_to_the_neighbours() {
    let mount = Mount::new();
    collection(&mount, "l2");
    for (dir, like) in [("docs", "03.f32"), ("docs", "sub/04.f32"), ("docs/sub", "rows.npy#2")] {
        let set = mount.path(dir).join(".vexfs/similar").join(like);
        let json: Value = serde_json::from_slice(&read(&set.join("results.json"))).unwrap();
        let hits = hits(&json);
        let mut names: Vec<_> = fs::read_dir(&set)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_symlink())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        assert_eq!(names.len(), 10);
        for (i, (name, hit)) in names.iter().zip(&hits).enumerate() {
            let base = hit.path.rsplit('/').next().unwrap();
            let row = if base == "rows.npy" { format!("#{}", hit.row) } else { String::new() };
            assert_eq!(*name, format!("{:04}_{:.4}_{base}{row}", i + 1, hit.distance));
            let target = mount.path(dir).join(&hit.path);
            let want = match base {
                "rows.npy" => {
                    let target = mount.path(dir).join(".vexfs/rows").join(&hit.path);
                    read(&target.join(format!("{:06}.f32", hit.row)))
                }
                _ => read(&target),
            };
            assert_eq!(read(&set.join(name)), want, "{name}");
            assert!(fs::read_link(set.join(name)).unwrap().is_relative());
        }
        let shown = shell(&set, "ls -1 | sed -n 1p; cat \"$(ls | sed -n 1p)\" | wc -c");
        assert_eq!(shown, format!("{}\n{}\n", names[0], DIM * 4));
    }
}

#[test]
fn result_files_have_the_size_that_stat_says_and_are_never_stale() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    fs::write(mount.path("docs/.vexfs/queries/q"), f32_bytes(&query)).unwrap();
    let sets = ["docs/.vexfs/similar/03.f32", "docs/.vexfs/results/q"];
    let first: Vec<_> = sets.map(|set| read(&mount.path(set).join("results.json"))).to_vec();
    for set in sets {
        for name in ["results.json", "results.tsv", "ids.ivecs", "distances.fvecs"] {
            let path = mount.path(set).join(name);
            assert_eq!(fs::metadata(&path).unwrap().len(), read(&path).len() as u64, "{set}/{name}");
        }
    }
    for (set, first) in sets.iter().zip(&first) {
        let again = read(&mount.path(set).join("results.json"));
        assert_eq!(text(&again), text(first), "nothing changed, so the set is the same one");
    }
    mount.put("docs/new.f32", &query);
    let json: Value = serde_json::from_slice(&read(&mount.path(sets[1]).join("results.json"))).unwrap();
    assert_eq!(json["hits"][0]["path"], "new.f32");
    fs::remove_file(mount.path("docs/new.f32")).unwrap();
    let json: Value = serde_json::from_slice(&read(&mount.path(sets[1]).join("results.json"))).unwrap();
    assert_ne!(json["hits"][0]["path"], "new.f32");
    let names = shell(&mount.path(sets[0]), "ls -l | wc -l; wc -c results.json > /dev/null");
    assert_eq!(names, "15\n", "ten links and four files, and the line of ls");
}

#[test]
fn a_renamed_neighbour_is_shown_under_its_new_name_at_every_door() {
    let mount = Mount::new();
    for dir in ["docs", "docs/sub"] {
        mount.mkdir(dir);
    }
    mount.put("docs/q.f32", &[1.0, 0.0]);
    mount.put("docs/a.f32", &[1.0, 0.1]);
    fs::write(mount.path("docs/.vexfs/queries/q.vec"), "1 0.1").unwrap();
    let doors = || {
        let like = mount.json("docs/.vexfs/similar/q.f32/results.json")["hits"][0]["path"].clone();
        let dropped = mount.json("docs/.vexfs/results/q.vec/results.json")["hits"][0]["path"].clone();
        let asked = mount.ask_json("docs", &json!({"like": "q.f32"}))["hits"][0]["path"].clone();
        let attribute = json!(mount.similar("docs/q.f32")[0]);
        [like, dropped, asked, attribute]
    };
    assert_eq!(doors(), ["a.f32", "a.f32", "a.f32", "a.f32"]);
    for (from, to) in [("a.f32", "b.f32"), ("b.f32", "sub/c.f32"), ("sub", "moved")] {
        fs::rename(mount.path("docs").join(from), mount.path("docs").join(to)).unwrap();
        let path = if to == "moved" { "moved/c.f32" } else { to };
        assert_eq!(doors(), [path, path, path, path], "{from} became {to}");
    }
    fs::hard_link(mount.path("docs/moved/c.f32"), mount.path("docs/z.f32")).unwrap();
    fs::remove_file(mount.path("docs/moved/c.f32")).unwrap();
    assert_eq!(doors(), ["z.f32", "z.f32", "z.f32", "z.f32"], "its other name is left");
}

#[test]
fn a_replaced_query_has_new_results_and_a_removed_one_none() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/x.f32", &[1.0, 0.0]);
    mount.put("docs/y.f32", &[0.0, 1.0]);
    let query = mount.path("docs/.vexfs/queries/q.vec");
    let first = || mount.json("docs/.vexfs/results/q.vec/results.json")["hits"][0]["path"].clone();
    fs::write(&query, "1 0").unwrap();
    assert_eq!(first(), "x.f32");
    fs::write(&query, "0, 1").unwrap();
    assert_eq!(first(), "y.f32");
    assert_eq!(fs::read_to_string(&query).unwrap(), "0, 1");
    let listed = |dir: &str| fs::read_dir(mount.path(dir)).unwrap().count();
    assert_eq!((listed("docs/.vexfs/queries"), listed("docs/.vexfs/results")), (1, 1));
    fs::remove_file(&query).unwrap();
    assert_eq!((listed("docs/.vexfs/queries"), listed("docs/.vexfs/results")), (0, 0));
    assert_eq!(errno(fs::metadata(mount.path("docs/.vexfs/results/q.vec"))), libc::ENOENT);
    // A request in JSON, and content that is none.
    fs::write(mount.path("docs/.vexfs/queries/j"), r#"{"like": "x.f32", "k": 1}"#).unwrap();
    assert_eq!(mount.json("docs/.vexfs/results/j/results.json")["hits"][0]["path"], "y.f32");
    let refused = File::create(mount.path("docs/.vexfs/queries/bad")).and_then(|mut file| {
        file.write_all(&[1; 11])?;
        nix::unistd::close(file).map_err(std::io::Error::from)
    });
    assert_eq!(errno(refused), libc::EINVAL);
    assert!(fs::read(mount.path("docs/.vexfs/results/bad/results.json")).is_err());
    let errors = fs::read_to_string(mount.path("docs/.vexfs/errors.jsonl")).unwrap();
    assert!(errors.contains("queries/bad") && errors.contains("11 bytes, want a multiple of 8"), "{errors}");
}

#[test]
fn what_is_wrong_with_a_dropped_query_is_said_of_it_and_of_no_other() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0, 3.0]);
    let drop_in = |name: &str, content: &str| {
        let mut file = File::create(dir.join(".vexfs/queries").join(name))?;
        file.write_all(content.as_bytes())?;
        nix::unistd::close(file).map_err(std::io::Error::from)
    };
    let error = |name: &str| mount.try_attribute(&format!("docs/.vexfs/{name}"), "user.vexfs.error");
    let noted = || {
        let lines = text(&read(&dir.join(".vexfs/errors.jsonl")));
        let said = |line: &str| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["path"].as_str().unwrap().to_owned(), line["error"].as_str().unwrap().to_owned())
        };
        lines.lines().map(said).collect::<Vec<_>>()
    };
    drop_in("good.vec", "3 2 1").unwrap();
    for (name, content, code, message) in [
        ("two.vec", "1 2", libc::EINVAL, "dimension 2, collection has 3"),
        ("nan.vec", "1 nan 2", libc::EDOM, "row 0, column 1: value is NaN, want a finite number"),
        ("zero.vec", "0 0 0", libc::EDOM, "row 0: the zero vector has no cosine distance"),
        ("k", r#"{"vector": [1, 2, 3], "k": 10001}"#, libc::EMSGSIZE, "k 10001, the limit is 10000"),
    ] {
        // Twice: of each there is one note.
        assert_eq!((errno(drop_in(name, content)), errno(drop_in(name, content))), (code, code), "{name}");
        assert_eq!(error(&format!("queries/{name}")).unwrap(), message);
        assert_eq!(noted().last().unwrap(), &(format!(".vexfs/queries/{name}"), message.to_owned()));
        assert_eq!(errno(fs::read_dir(dir.join(".vexfs/results").join(name))), libc::EINVAL, "{name}");
    }
    assert_eq!(noted().len(), 4);
    for silent in ["queries/good.vec", "config", "query"] {
        assert_eq!(errno(error(silent)), libc::ENODATA, "{silent}");
    }
    // An empty one is a query that is not written yet.
    drop_in("empty", "").unwrap();
    shell(&dir, "touch .vexfs/queries/touched; truncate -s 0 .vexfs/queries/good.vec");
    for empty in ["queries/empty", "queries/touched", "queries/good.vec"] {
        assert_eq!(error(empty).unwrap(), "empty file", "{empty}");
    }
    assert_eq!(errno(fs::read_dir(dir.join(".vexfs/results/good.vec"))), libc::EINVAL);
    drop_in("good.vec", "3 2 1").unwrap();
    fs::remove_file(dir.join(".vexfs/queries/two.vec")).unwrap();
    drop_in("nan.vec", "1 1 2").unwrap();
    let left = noted().into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    assert_eq!(left, ["zero.vec", "k", "empty", "touched"].map(|name| format!(".vexfs/queries/{name}")));
    // One that fits no longer says so when it is asked for, and is silent when it fits again.
    shell(&dir, "rm a.f32; echo 1 2 >b.vec");
    let results = dir.join(".vexfs/results/good.vec");
    assert_eq!(errno(fs::read_dir(&results)), libc::EINVAL);
    assert_eq!(error("queries/good.vec").unwrap(), "dimension 3, collection has 2");
    shell(&dir, "rm b.vec; echo 1 2 3 >c.vec");
    assert!(fs::read_dir(&results).unwrap().count() > 0);
    assert_eq!(errno(error("queries/good.vec")), libc::ENODATA);
}

#[test]
fn what_is_wrong_with_a_dropped_query_is_said_to_who_dropped_it() {
    if !is_root() {
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    fs::set_permissions(mount.outside("."), Permissions::from_mode(0o755)).unwrap();
    let dir = mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0, 3.0]);
    shell(&dir, "echo 1 2 >.vexfs/queries/ours.vec");
    let script = "echo 1 2 >.vexfs/queries/theirs.vec; cat .vexfs/errors.jsonl";
    let mut user = Command::new("bash");
    let output = run(user.args(["-c", script]).current_dir(&dir).uid(NOBODY).gid(NOBODY));
    let said = text(&output.stdout);
    assert!(said.lines().count() == 1 && said.contains("queries/theirs.vec"), "{said}");
    assert_eq!(text(&read(&dir.join(".vexfs/errors.jsonl"))).lines().count(), 2);
}

#[test]
fn distances_are_what_the_metrics_name_says() {
    let mount = Mount::new();
    let (a, b) = ([1.0f32, 2.0, 2.0], [4.0f32, 6.0, 2.0]);
    let dot: f32 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    for (metric, distance, score) in [
        ("l2", 5.0, -5.0),
        ("ip", -dot, dot),
        ("cosine", 1.0 - dot / (3.0 * 56f32.sqrt()), dot / (3.0 * 56f32.sqrt())),
    ] {
        mount.mkdir(metric);
        configure(&mount, metric, &format!("[collection]\nmetric = \"{metric}\"\n"));
        mount.put(&format!("{metric}/a.f32"), &a);
        mount.mkdir(&format!("{metric}/sub"));
        mount.put(&format!("{metric}/sub/b.f32"), &b);
        let answer = mount.ask_json(metric, &json!({"vector": a, "k": 2}));
        let hit = answer["hits"].as_array().unwrap().iter().find(|hit| hit["path"] == "sub/b.f32").unwrap();
        let close = |got: &Value, want: f32| (got.as_f64().unwrap() - f64::from(want)).abs() < 1e-5;
        assert!(close(&hit["distance"], distance) && close(&hit["score"], score), "{metric}: {hit}");
        assert_eq!(answer["metric"], metric);
        for name in ["user.vexfs.distance.sub/b.f32", &format!("user.vexfs.distance./{metric}/sub/b.f32")] {
            let text = mount.attribute(&format!("{metric}/a.f32"), name);
            assert!((text.parse::<f32>().unwrap() - distance).abs() < 1e-5, "{metric}: {name}: {text}");
        }
        let back = mount.attribute(&format!("{metric}/sub/b.f32"), "user.vexfs.distance.../a.f32");
        assert!((back.parse::<f32>().unwrap() - distance).abs() < 1e-5, "{metric}: {back}");
        let itself = mount.attribute(&format!("{metric}/a.f32"), "user.vexfs.distance.a.f32");
        let want = if metric == "ip" { -9.0 } else { 0.0 };
        assert!((itself.parse::<f32>().unwrap() - want).abs() < 1e-5, "{metric}: {itself}");
        let line = mount.attribute(&format!("{metric}/a.f32"), "user.vexfs.similar");
        let shown: f32 = line.split_once('\t').unwrap().0.parse().unwrap();
        assert!((shown - distance).abs() < 1e-5, "{metric}: {line}");
    }
    mount.put("l2/short.f32", &[1.0; 3]);
    for (path, code) in [("none.f32", libc::ENOENT), ("sub", libc::EINVAL)] {
        let name = format!("user.vexfs.distance.{path}");
        assert_eq!(errno(mount.try_attribute("l2/a.f32", &name)), code, "{path}");
    }
}

#[test]
fn a_copy_is_at_no_distance_whichever_way_it_is_found() {
    let mount = Mount::new();
    let mut random = Random(11);
    let vectors: Vec<Vec<f32>> = (0..100).map(|_| random.vector(96)).collect();
    for (metric, quant) in [("cosine", "none"), ("cosine", "sq8"), ("l2", "none")] {
        let dir = format!("{metric}-{quant}");
        mount.mkdir(&dir);
        let index = format!("exact_below = 20\nquant = \"{quant}\"\n");
        configure(&mount, &dir, &format!("[collection]\nmetric = \"{metric}\"\n[index]\n{index}"));
        fs::write(mount.path(&dir).join("originals.npy"), npy(&vectors)).unwrap();
        fs::write(mount.path(&dir).join("copies.npy"), npy(&vectors)).unwrap();
        mount.sync();
        for row in 0..100 {
            for exact in [false, true] {
                let mut request = json!({"like": "originals.npy", "row": row, "k": 2, "max": 0});
                request["exact"] = exact.into();
                let answer = mount.ask_json(&dir, &request);
                assert_eq!(answer["exact"], exact, "{dir}: {answer}");
                let found: Vec<_> = hits(&answer).into_iter().map(|hit| (hit.path, hit.row)).collect();
                assert_eq!(found, [("copies.npy".to_owned(), row)], "{dir}: {answer}");
                assert_eq!(answer["hits"][0]["distance"], 0.0);
            }
        }
        mount.put(&format!("{dir}/a.f32"), &vectors[0]);
        mount.put(&format!("{dir}/b.f32"), &vectors[0]);
        assert_eq!(mount.attribute(&format!("{dir}/a.f32"), "user.vexfs.distance.b.f32"), "0");
    }
}

#[test]
fn vectors_that_are_nearer_than_f32_has_squares_for_have_their_distance_and_rank() {
    let mount = Mount::new();
    mount.mkdir("docs");
    configure(&mount, "docs", "[collection]\nmetric = \"l2\"\n");
    mount.put("docs/origin.f32", &[1.0, 0.0]);
    mount.put("docs/z.f32", &[1.0, 3e-25]);
    for name in ["b", "copy"] {
        mount.put(&format!("docs/{name}.f32"), &[1.0, if name == "b" { 1e-22 } else { 0.0 }]);
    }
    mount.put("docs/a.f32", &[1.0, 2e-16]);
    mount.put("docs/far.f32", &[1.0, 1e-3]);
    let want = [("copy.f32", 0.0), ("z.f32", 3e-25), ("b.f32", 1e-22), ("a.f32", 2e-16), ("far.f32", 1e-3)];
    for k in 1..=5 {
        for request in [json!({"like": "origin.f32", "k": k}), json!({"vector": [1, 0], "k": k + 1})] {
            let answer = mount.ask_json("docs", &request);
            let mut hits = answer["hits"].as_array().unwrap().clone();
            hits.retain(|hit| hit["path"] != "origin.f32");
            for (hit, (path, distance)) in hits.iter().zip(want) {
                let told = hit["distance"].as_f64().unwrap();
                assert!(hit["path"] == path && (told - distance).abs() <= distance * 1e-6, "{answer}");
            }
            assert_eq!(hits.len(), k);
        }
    }
    let near = mount.ask_json("docs", &json!({"like": "origin.f32", "max": 1e-23}));
    assert_eq!(near["hits"].as_array().unwrap().len(), 2, "{near}");
    let told: f64 = mount.attribute("docs/origin.f32", "user.vexfs.distance.b.f32").parse().unwrap();
    assert!((told / 1e-22 - 1.0).abs() < 1e-6, "{told}");
}

#[test]
fn ties_are_broken_by_path_then_row() {
    let mount = Mount::new();
    for dir in ["docs", "docs/b"] {
        mount.mkdir(dir);
    }
    for name in ["z.f32", "b/q.f32", "a.f32", "b.f32", "m.f32"] {
        mount.put(&format!("docs/{name}"), &[1.0, 1.0]);
    }
    fs::write(mount.path("docs/k.npy"), npy(&vec![vec![1.0, 1.0]; 3])).unwrap();
    mount.put("docs/far.f32", &[1.0, 0.0]);
    let want = [
        ("a.f32", 0),
        ("b.f32", 0),
        ("b/q.f32", 0),
        ("k.npy", 0),
        ("k.npy", 1),
        ("k.npy", 2),
        ("m.f32", 0),
        ("z.f32", 0),
        ("far.f32", 0),
    ];
    for k in 1..=9 {
        let answer = mount.ask_json("docs", &json!({"vector": [1.0, 1.0], "k": k}));
        let got: Vec<_> = hits(&answer).into_iter().map(|hit| (hit.path, hit.row)).collect();
        let want: Vec<_> = want[..k].iter().map(|(path, row)| ((*path).to_owned(), *row)).collect();
        assert_eq!(got, want, "k = {k}");
    }
}

#[test]
fn exactly_k_come_back_when_k_exist_and_all_when_not() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    for (k, want) in [(1, 1), (49, 49), (50, 50), (51, 50), (10_000, 50)] {
        let answer = mount.ask_json("docs", &json!({"vector": query, "k": k}));
        assert_eq!(answer["hits"].as_array().unwrap().len(), want, "k = {k}");
        let binary = records(&mount.ask("docs", &[header(1, DIM, k), f32_bytes(&query)].concat()));
        assert_eq!(binary.len(), k, "records are padded to k");
        assert_eq!(binary.iter().filter(|record| record.0 == u32::MAX).count(), k - want);
        let unique: BTreeSet<_> = binary[..want].iter().map(|record| record.0).collect();
        assert_eq!(unique.len(), want);
    }
    assert_eq!(mount.ask_json("docs", &json!({"vector": query}))["k"], 10);
    mount.mkdir("empty");
    let answer = mount.ask_json("empty", &json!({"vector": [1.0]}));
    assert_eq!((&answer["hits"], &answer["complete"]), (&json!([]), &json!(true)));
    assert_eq!(fs::read_dir(mount.path("empty/.vexfs/similar")).unwrap().count(), 0);
}

#[test]
fn without_k_every_door_gives_ten_or_as_many_as_the_limit_allows() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    for i in 0..12_u8 {
        mount.put(&format!("docs/f{i}.f32"), &[f32::from(i), 2.0, 3.0]);
    }
    fs::write(dir.join(".vexfs/queries/q"), br#"{"vector": [1, 2, 3]}"#).unwrap();
    for (config, k) in [("\n", 10), ("[limits]\nmax_k = 5\n", 5)] {
        configure(&mount, "docs", config);
        let in_file = |path: &str| hits(&mount.json(&format!("docs/.vexfs/{path}/results.json"))).len();
        assert_eq!((in_file("similar/f0.f32"), in_file("results/q")), (k, k), "{config}");
        assert_eq!(mount.similar("docs/f0.f32").len(), k);
        assert_eq!(hits(&mount.ask_json("docs", &json!({"like": "f0.f32"}))).len(), k);
        let binary =
            [&b"{\"dtype\":\"f32\",\"rows\":1,\"dim\":3}\n"[..], &f32_bytes(&[1.0, 2.0, 3.0])].concat();
        assert_eq!(records(&mount.ask("docs", &binary)).len(), k);
        let found = search(&mount, &["docs", "--like", "docs/f0.f32", "--paths"]);
        assert_eq!(text(&found.stdout).lines().count(), k, "{}", text(&found.stderr));
        let plan = mount.ask_json("docs", &json!({"explain": true}));
        assert_eq!(plan["k"], k);
    }
    assert_eq!(mount.ask_json("docs", &json!({"like": "f0.f32", "k": 6}))["error"]["code"], "EMSGSIZE");
    assert_eq!(errno(mount.try_attribute("docs/f0.f32", "user.vexfs.similar.6")), libc::EMSGSIZE);
}

#[test]
fn options_stand_in_the_path_in_any_order() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    fs::write(mount.path("docs/.vexfs/queries/q"), f32_bytes(&query)).unwrap();
    let all = hits(&mount.ask_json("docs", &json!({"vector": query, "k": 50})));
    let max = all[6].distance;
    let get = |options: &str| mount.json(&format!("docs/.vexfs/{options}/results/q/results.json"));
    assert_eq!(hits(&get("@k=20")), all[..20]);
    assert_eq!(hits(&get("@ef=50,k=3")), all[..3]);
    assert_eq!(hits(&get("@exact,k=3")), all[..3]);
    assert_eq!(get("@exact,k=3")["exact"], true);
    assert_eq!(hits(&get(&format!("@k=50,max={max}"))), all[..7], "max is inclusive");
    assert_eq!(hits(&get("@max=0")), []);
    let answer = mount.ask_json("docs", &json!({"vector": query, "max": max, "ef": 7, "exact": true}));
    assert_eq!(hits(&answer), all[..7]);
    for (options, code) in [
        ("@k=0", libc::EINVAL),
        ("@k=", libc::EINVAL),
        ("@kk=3", libc::EINVAL),
        ("@k=10001", libc::EMSGSIZE),
        ("@where=a=", libc::EINVAL),
        ("@where=(a,k=3", libc::EINVAL),
        ("@k=3,exact,k=4", libc::EINVAL),
        ("@", libc::EINVAL),
    ] {
        let got = fs::metadata(mount.path("docs/.vexfs").join(options).join("results"));
        assert_eq!(errno(got), code, "{options}");
    }
    assert_eq!(fs::read_dir(mount.path("docs/.vexfs/@k=3/similar/03.f32")).unwrap().count(), 7);
    assert_eq!(mount.attribute("docs/03.f32", "user.vexfs.similar.3").lines().count(), 3);
    for bad in ["user.vexfs.similar.0", "user.vexfs.similar.10001", "user.vexfs.similar.x"] {
        assert!(mount.try_attribute("docs/03.f32", bad).is_err(), "{bad}");
    }
}

#[test]
fn a_request_may_come_byte_by_byte_and_the_handle_takes_the_next() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/x.f32", &[1.0, 0.0]);
    mount.put("docs/y.f32", &[0.0, 1.0]);
    let mut file = mount.query_file("docs");
    let mut byte = [0; 1];
    let mut buffer = vec![0; 4096];
    for (vector, first) in [([1.0f32, 0.1], 0u32), ([0.1, 1.0], 1)] {
        for (request, binary) in [
            (format!("{}\n", json!({"vector": vector, "k": 1})).into_bytes(), false),
            ([header(1, 2, 1), f32_bytes(&vector)].concat(), true),
        ] {
            for (i, piece) in request.iter().enumerate() {
                // A whole JSON object is a request also without its newline.
                if !binary && i + 1 == request.len() {
                    break;
                }
                assert_eq!(file.read(&mut byte).unwrap(), 0, "an answer before byte {i} of the request");
                file.write_all(&[*piece]).unwrap();
            }
            let mut answer = Vec::new();
            file.read_to_end(&mut answer).unwrap();
            let id = match binary {
                true => records(&answer)[0].0,
                false => hits(&serde_json::from_slice(&answer).unwrap())[0].id,
            };
            assert_eq!(id, first);
            assert_eq!(file.read(&mut buffer).unwrap(), 0, "the answer has been read");
        }
    }
}

#[test]
fn several_requests_in_one_write_have_their_answers_in_order() {
    let mount = Mount::new();
    mount.mkdir("docs");
    configure(&mount, "docs", "[collection]\nmetric = \"l2\"\n");
    for i in 0..50 {
        mount.put(&format!("docs/{i:02}.f32"), &[1.0, i as f32]);
    }
    let mut request = Vec::new();
    for i in 0..50 {
        writeln!(request, "{}", json!({"vector": [1.0, f64::from(i)], "k": 3, "exact": true})).unwrap();
    }
    request.extend(header(2, 2, 1));
    request.extend(f32_bytes(&[1.0, 7.0, 1.0, 8.0]));
    let answer = mount.ask("docs", &request);
    let split = answer.len() - 16;
    let lines: Vec<Value> =
        text(&answer[..split]).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 50);
    for (i, line) in lines.iter().enumerate() {
        assert_eq!(paths(line)[0], format!("{i:02}.f32"));
    }
    assert_eq!(records(&answer[split..]).iter().map(|record| record.0).collect::<Vec<_>>(), [7, 8]);
}

#[test]
fn handles_do_not_see_each_others_requests() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    let want = hits(&mount.ask_json("docs", &json!({"vector": query})));
    std::thread::scope(|scope| {
        for who in 0..4u64 {
            let (mount, query, want) = (&mount, &query, &want);
            scope.spawn(move || {
                let mut random = Random(who);
                for _ in 0..25 {
                    let own = random.vector(DIM);
                    let mut file = mount.query_file("docs");
                    let request = format!("{}\n{}\n", json!({"vector": own}), json!({"vector": query}));
                    let (first, second) = request.as_bytes().split_at(20);
                    file.write_all(first).unwrap();
                    file.write_all(second).unwrap();
                    let mut answer = String::new();
                    file.read_to_string(&mut answer).unwrap();
                    let last: Value = serde_json::from_str(answer.lines().nth(1).unwrap()).unwrap();
                    assert_eq!(hits(&last), *want);
                }
            });
        }
    });
}

#[test]
fn what_is_wrong_with_a_request_is_said_with_its_errno_and_both_numbers() {
    let mount = Mount::new();
    collection(&mount, "cosine");
    fs::write(mount.path("docs/bad.f32"), b"x").unwrap();
    fs::write(mount.path("docs/note.txt"), b"x").unwrap();
    for (request, code, message) in [
        ("nonsense", "EINVAL", "expected"),
        ("[1,2]", "EINVAL", "want a JSON object"),
        (r#"{"vector":[1,2]}"#, "EINVAL", "dimension 2, collection has 6"),
        (r#"{"vector":[1,2,3,4,5,6],"k":0}"#, "EINVAL", "k is 0"),
        (r#"{"vector":[1,2,3,4,5,6],"k":10001}"#, "EMSGSIZE", "k 10001, the limit is 10000"),
        (r#"{"vector":[1,2,3,4,5,6],"kk":1}"#, "EINVAL", "kk"),
        (r#"{"vector":[0,0,0,0,0,0]}"#, "EDOM", "zero vector"),
        (r#"{"like":"none.f32"}"#, "ENOENT", "no such file"),
        (r#"{"like":"bad.f32"}"#, "EINVAL", "1 bytes"),
        (r#"{"like":"note.txt"}"#, "EINVAL", "note.txt"),
        (r#"{"like":"sub/rows.npy"}"#, "EINVAL", "has 20 rows"),
        (r#"{"like":"sub/rows.npy","row":20}"#, "EINVAL", "row 20, the file has 20"),
        (r#"{"text":"a question"}"#, "EOPNOTSUPP", "embedder"),
        (r#"{"k":3}"#, "EINVAL", "one of vector, like and text"),
    ] {
        let answer: Value =
            serde_json::from_slice(&mount.ask("docs", format!("{request}\n").as_bytes())).unwrap();
        assert_eq!(
            (&answer["schema"], &answer["error"]["code"]),
            (&json!(1), &json!(code)),
            "{request}: {answer}"
        );
        let said = answer["error"]["message"].as_str().unwrap();
        assert!(said.contains(message), "{request}: {said}");
    }
    for (header, code) in [
        ("{\"dtype\":\"f32\",\"rows\":1,\"dim\":16385}\n", libc::EMSGSIZE),
        ("{\"dtype\":\"f32\",\"rows\":99999999999,\"dim\":6}\n", libc::EMSGSIZE),
        ("{\"dtype\":\"f32\",\"rows\":18446744073709551615,\"dim\":16384}\n", libc::EMSGSIZE),
        ("{\"dtype\":\"f32\",\"rows\":1,\"dim\":6,\"k\":10001}\n", libc::EMSGSIZE),
        ("{\"dtype\":\"c64\",\"rows\":1,\"dim\":6}\n", libc::EINVAL),
        ("{\"dtype\":\"f32\",\"rows\":0,\"dim\":6}\n", libc::EINVAL),
    ] {
        let mut file = mount.query_file("docs");
        assert_eq!(errno(file.write_all(header.as_bytes())), code, "{header}");
        file.write_all(b"{\"like\":\"03.f32\",\"k\":1}\n").unwrap();
        let mut answer = String::new();
        file.read_to_string(&mut answer).unwrap();
        assert!(answer.contains("\"hits\":[{"), "the handle begins anew: {answer}");
    }
    // What only the search can find wrong is the error of the read.
    let mut file = mount.query_file("docs");
    for vector in [vec![1.0; 5], vec![0.0; DIM], vec![f32::NAN; DIM]] {
        file.write_all(&[header(1, vector.len(), 1), f32_bytes(&vector)].concat()).unwrap();
        let code = if vector.len() == DIM { libc::EDOM } else { libc::EINVAL };
        assert_eq!(errno(file.read(&mut [0; 8])), code, "{vector:?}");
    }
    file.write_all(b"{\"like\":\"03.f32\",\"k\":1}\n").unwrap();
    assert_eq!(file.read(&mut [0; 8]).unwrap(), 8);
}

#[test]
fn a_shell_talks_to_the_transaction_file_line_by_line() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/x.f32", &[1.0, 0.0]);
    mount.put("docs/y.f32", &[0.0, 1.0]);
    let said = shell(
        &mount.path("docs"),
        r#"exec 3<> .vexfs/query
           ask() { echo "$1" >&3; read -r line <&3; grep -o '[xy].f32' <<< "$line" | tr '\n' ' '; }
           ask '{"vector":[1,0.1]}'; ask '{"vector":[0.1,1],"k":1}'; ask '{"like":"x.f32"}'
           printf '{"vector":[1,0],"k":1}\n{"vector":[0,1],"k":1}\n' >&3
           for i in 1 2; do read -r line <&3; grep -o '[xy].f32' <<< "$line"; done | tr '\n' ' '
           echo '{"vector":[1,0],"k":1}' 1<> .vexfs/query | cat; exec 4<> .vexfs/query; cat <&4"#,
    );
    assert_eq!(said, "x.f32 y.f32 y.f32 y.f32 x.f32 y.f32 ");
}

#[test]
fn a_request_beyond_the_limit_is_refused_before_it_is_held() {
    let mount = Mount::new();
    mount.mkdir("docs");
    configure(&mount, "docs", "[limits]\nmax_query = 100000\n");
    let mut file = mount.query_file("docs");
    let mut refused = None;
    for _ in 0..100 {
        if let Err(error) = file.write_all(&[b'x'; 4096]) {
            refused = error.raw_os_error();
            break;
        }
    }
    assert_eq!(refused, Some(libc::EMSGSIZE));
    let big = fs::write(mount.path("docs/.vexfs/queries/big"), vec![0; 200_000]);
    assert_eq!(errno(big), libc::EMSGSIZE);
}

#[test]
fn a_dropped_query_whose_answer_is_beyond_the_limit_is_refused_with_both_numbers() {
    let mount = Mount::new();
    mount.mkdir("docs");
    configure(&mount, "docs", "[collection]\nmetric = \"l2\"\n[limits]\nmax_query = 100000\n");
    mount.put("docs/a.f32", &[1.0]);
    // 2000 vectors in 2008 bytes: 160,000 bytes of answers for the 10 nearest, 32,000 for two.
    let query = [&2000u32.to_le_bytes()[..], &1u32.to_le_bytes(), &[7; 2000]].concat();
    fs::write(mount.path("docs/.vexfs/queries/q.u8bin"), query).unwrap();
    let answer =
        |element: &str| fs::metadata(mount.path(format!("docs/.vexfs/{element}results/q.u8bin/ids.ivecs")));
    assert_eq!(errno(answer("")), libc::EMSGSIZE);
    let errors = fs::read_to_string(mount.path("docs/.vexfs/errors.jsonl")).unwrap();
    assert!(errors.contains("queries/q.u8bin"), "{errors}");
    assert!(errors.contains("answer of bytes 160000, the limit is 100000"), "{errors}");
    assert_eq!(errno(answer("@k=7/")), libc::EMSGSIZE);
    assert_eq!(answer("@k=2/").unwrap().len(), 2000 * (1 + 2) * 4);
    // What is dropped in its place is not accused.
    fs::write(mount.path("docs/.vexfs/queries/q.u8bin"), [&[1, 0, 0, 0, 1, 0, 0, 0][..], &[7]].concat())
        .unwrap();
    assert_eq!(answer("").unwrap().len(), (1 + 10) * 4);
    assert_eq!(fs::read_to_string(mount.path("docs/.vexfs/errors.jsonl")).unwrap(), "");
}

#[test]
fn a_text_query_says_that_there_is_no_embedder() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0]);
    assert_eq!(errno(fs::read_dir(mount.path("docs/.vexfs/search/a question"))), libc::EOPNOTSUPP);
    assert_eq!(errno(mount.try_attribute("docs", "user.vexfs.q.a question")), libc::EOPNOTSUPP);
    assert_eq!(fs::read_dir(mount.path("docs/.vexfs/search")).unwrap().count(), 0);
}

#[test]
fn config_shows_what_is_in_force_and_refuses_what_it_does_not_know() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    let path = mount.path("docs/.vexfs/config");
    let shown = || fs::read_to_string(&path).unwrap();
    for key in [
        "metric = \"cosine\"",
        "m = 16",
        "ef_construction = 200",
        "recall = 0.95",
        "quant = \"sq8\"",
        "exact_below = 5000",
        "max_dim = 16384",
        "max_k = 10000",
    ] {
        assert!(shown().contains(key), "{key} is missing in {}", shown());
    }
    assert_eq!(fs::metadata(&path).unwrap().len(), shown().len() as u64);
    let set = |config: &str| {
        let mut file = File::create(&path)?;
        file.write_all(config.as_bytes())?;
        nix::unistd::close(file).map_err(std::io::Error::from)
    };
    set("[collection]\ndim = 3\nmetric = \"ip\"\n[index]\nrecall = 0.9\nquant = \"none\"\n[limits]\nmax_k = 7\n")
        .unwrap();
    let good = shown();
    for key in ["dim = 3", "metric = \"ip\"", "recall = 0.9\n", "quant = \"none\"", "max_k = 7"] {
        assert!(good.contains(key), "{key} is missing in {good}");
    }
    for (config, message) in [
        ("[collection]\ndimm = 3\n", "dimm"),
        ("[index]\nm = 1\n", "index.m = 1, want 2 to 128"),
        ("[collection]\nmetric = \"hamming\"\n", "hamming"),
        ("[limits]\nmax_k = 99999\n", "limits.max_k = 99999, want 1 to 10000"),
        ("nonsense", ""),
        ("[index]\nquant = \"sq4\"\n", "index.quant: 'sq4', want none, sq8 or b1"),
        ("[index]\nrecall = 1\n", ""),
        ("[index]\nrecall = 0.4\n", "index.recall = 0.4, want 0.5 to 0.999"),
        ("[index]\nef = 200\n", "unknown field `ef`"),
    ] {
        assert_eq!(errno(set(config)), libc::EINVAL, "{config}");
        assert_eq!(shown(), good, "a refused configuration changes nothing");
        let errors = fs::read_to_string(mount.path("docs/.vexfs/errors.jsonl")).unwrap();
        let last: Value = serde_json::from_str(errors.lines().last().unwrap()).unwrap();
        assert_eq!(last["path"], ".vexfs/config");
        assert!(last["error"].as_str().unwrap().contains(message), "{last}");
        assert!(mount.attribute("docs/.vexfs/config", "user.vexfs.error").contains(message));
    }
    // What it shows can be written back.
    set(&good).unwrap();
    mount.remount();
    assert_eq!(fs::read_to_string(mount.path("docs/.vexfs/config")).unwrap(), good);
    assert_eq!(mount.ask_json("docs", &json!({"vector": [1, 2, 3], "k": 8}))["error"]["code"], "EMSGSIZE");
    shell(
        &mount.path("docs/.vexfs"),
        "sed 's/max_k = 7/max_k = 8/' config > /tmp/$$ && cat /tmp/$$ > config; rm /tmp/$$",
    );
    assert!(fs::read_to_string(mount.path("docs/.vexfs/config")).unwrap().contains("max_k = 8"));
}

#[test]
fn a_configuration_changes_by_what_is_written_and_not_by_cutting_it_off() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    let conf = "[collection]\ndim = 3\nmetric = \"l2\"\n[index]\nm = 32\nquant = \"none\"\nexact_below = 10\n\
                [limits]\nmax_k = 50\n";
    fs::write(mount.outside("conf"), conf).unwrap();
    fs::write(mount.outside("big"), vec![b'\n'; 70_000]).unwrap();
    configure(&mount, "docs", conf);
    let shown = || text(&read(&dir.join(".vexfs/config")));
    let error = || mount.attribute("docs/.vexfs/config", "user.vexfs.error");
    let good = shown();
    // A shell closes a copy of the descriptor before anything is written.
    let script = |script: &str| {
        let output = run(Command::new("bash").args(["-c", script]).current_dir(&dir));
        assert_eq!(shown(), good, "{script}");
        output.status.success()
    };
    script("echo bad=1 >.vexfs/config");
    assert!(error().contains("bad"), "{}", error());
    assert!(script(": >.vexfs/config"));
    script("false >.vexfs/config");
    assert!(script("truncate -s 0 .vexfs/config"));
    for oversize in ["cp ../../big .vexfs/config", "dd if=../../big of=.vexfs/config bs=4096"] {
        assert!(script("cat ../../conf >.vexfs/config"));
        assert_eq!(errno(mount.try_attribute("docs/.vexfs/config", "user.vexfs.error")), libc::ENODATA);
        assert!(!script(oversize));
        assert!(error().ends_with("the limit is 65536"), "{}", error());
    }
    // The same configuration keeps the graph.
    let mut random = Random(5);
    let rows: Vec<_> = (0..300).map(|_| random.vector(3)).collect();
    fs::write(dir.join("rows.npy"), npy(&rows)).unwrap();
    mount.sync();
    let graph = || mount.json("docs/.vexfs/index.json")["collections"][0].clone();
    let before = graph();
    assert_eq!((&before["state"], &before["graph"]["m"]), (&json!("ready"), &json!(32)));
    assert!(script("cat ../../conf >.vexfs/config"));
    assert_eq!(graph(), before);
    // Through mapped pages, as an editor may; and nothing is reserved.
    let file = File::options().read(true).write(true).open(dir.join(".vexfs/config")).unwrap();
    #[expect(unsafe_code, reason = "a map is what is tested")]
    // SAFETY: nobody else has the draft.
    let mut map = unsafe { memmap2::MmapMut::map_mut(&file) }.unwrap();
    let at = good.find("max_k = 50").unwrap() + "max_k = ".len();
    map[at..at + 2].copy_from_slice(b"51");
    map.flush().unwrap();
    let reserved = nix::fcntl::fallocate(&file, nix::fcntl::FallocateFlags::empty(), 0, 10);
    assert_eq!(reserved, Err(nix::errno::Errno::EOPNOTSUPP));
    nix::unistd::close(file).unwrap();
    assert!(shown().contains("max_k = 51"), "{}", shown());
    drop(map);
    shell(&dir, "cat ../../conf >.vexfs/config");
    assert_eq!(shown(), good);
    let long = dir.join(".vexfs/queries").join("n".repeat(256));
    assert_eq!(errno(File::create(long)), libc::ENAMETOOLONG);
    // Appended to with a look between, as by a program that buffers: what is written goes to the end of it.
    let mut file = File::options().append(true).open(dir.join(".vexfs/config")).unwrap();
    writeln!(file, "# one that is longer than what is in force: {}", "-".repeat(1000)).unwrap();
    file.metadata().unwrap();
    writeln!(file, "# two").unwrap();
    nix::unistd::close(file).unwrap();
    assert_eq!(shown(), good);
    // An empty line is all defaults, and what cannot be is refused as ever.
    shell(&dir, "rm rows.npy; echo >.vexfs/config");
    assert!(shown().contains("metric = \"cosine\"") && shown().contains("max_k = 10000"), "{}", shown());
}

#[test]
fn what_a_shell_writes_into_a_vector_or_a_query_is_taken_when_it_is_written() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    let first = |dir: &Path| shell(dir, "cat .vexfs/results/q.vec/results.json");
    shell(&dir, "echo 1 0 >a.vec; echo 0 1 >b.vec; echo 2 1 >.vexfs/queries/q.vec");
    assert!(first(&dir).contains(r#""rank":1,"path":"a.vec""#));
    shell(&dir, "echo 1 2 >.vexfs/queries/q.vec");
    assert!(first(&dir).contains(r#""rank":1,"path":"b.vec""#));
    // The close of the copy takes the vector file empty, which is no vector.
    let status = "getfattr --only-values -n user.vexfs.status a.vec";
    let between = shell(&dir, &format!("exec 9>a.vec; {status}; echo; echo 3 1 >&9; exec 9>&-; {status}"));
    assert_eq!(between.split('\n').collect::<Vec<_>>(), ["invalid: empty file", "indexed"]);
}

#[test]
fn metric_and_dim_are_set_by_attribute_while_there_are_no_vectors() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    shell(&mount.root(), "setfattr -n user.vexfs.metric -v l2 docs; setfattr -n user.vexfs.dim -v 2 docs");
    assert_eq!(mount.attribute("docs", "user.vexfs.metric"), "l2");
    assert_eq!(mount.attribute("docs", "user.vexfs.dim"), "2");
    let config = fs::read_to_string(mount.path("docs/.vexfs/config")).unwrap();
    assert!(config.contains("dim = 2\n") && config.contains("metric = \"l2\""), "{config}");
    for (name, value) in [("metric", "hamming"), ("dim", "0"), ("dim", "16385"), ("dim", "many")] {
        let set = xattr::set(&dir, format!("user.vexfs.{name}"), value.as_bytes());
        assert_eq!(errno(set), libc::EINVAL, "{name} = {value}");
    }
    mount.put("docs/a.f32", &[3.0, 4.0]);
    mount.put("docs/b.f32", &[0.0, 0.0]);
    assert_eq!(mount.attribute("docs/a.f32", "user.vexfs.distance.b.f32"), "5");
    for (name, value) in [("metric", "cosine"), ("dim", "3")] {
        let set = xattr::set(&dir, format!("user.vexfs.{name}"), value.as_bytes());
        assert_eq!(errno(set), libc::EINVAL, "{name} = {value}");
    }
    xattr::set(&dir, "user.vexfs.metric", b"l2").unwrap();
    assert_eq!(
        errno(fs::write(mount.path("docs/.vexfs/config"), b"").and_then(|()| {
            // fs::write drops the error of close.
            let mut file = File::create(mount.path("docs/.vexfs/config"))?;
            file.write_all(b"[collection]\nmetric = \"ip\"\n")?;
            nix::unistd::close(file).map_err(std::io::Error::from)
        })),
        libc::EINVAL
    );
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "2");
    fs::remove_file(mount.path("docs/a.f32")).unwrap();
    fs::remove_file(mount.path("docs/b.f32")).unwrap();
    xattr::set(&dir, "user.vexfs.metric", b"ip").unwrap();
    xattr::set(&dir, "user.vexfs.dim", b"3").unwrap();
    mount.put("docs/a.f32", &[1.0, 2.0, 3.0]);
    assert_eq!(mount.status("docs/a.f32"), "indexed");
}

#[test]
fn a_search_covers_the_subtree_of_the_directory_asked() {
    let mount = Mount::new();
    for dir in ["docs", "docs/sub", "docs/sub/deep", "docs/other", "apart"] {
        mount.mkdir(dir);
    }
    for path in
        ["docs/a.f32", "docs/sub/b.f32", "docs/sub/deep/c.f32", "docs/other/d.f32", "apart/e.f32", "f.f32"]
    {
        mount.put(path, &[1.0, 1.0]);
    }
    let all = |dir: &str| paths(&mount.ask_json(dir, &json!({"vector": [1.0, 1.0], "k": 100})));
    assert_eq!(all("docs"), ["a.f32", "other/d.f32", "sub/b.f32", "sub/deep/c.f32"]);
    assert_eq!(all("docs/sub"), ["b.f32", "deep/c.f32"]);
    assert_eq!(all("docs/sub/deep"), ["c.f32"]);
    assert_eq!(all("docs/other"), ["d.f32"]);
    assert_eq!(
        all(""),
        ["apart/e.f32", "docs/a.f32", "docs/other/d.f32", "docs/sub/b.f32", "docs/sub/deep/c.f32", "f.f32"]
    );
    let like = |dir: &str, path: &str| paths(&mount.ask_json(dir, &json!({"like": path, "k": 100})));
    assert_eq!(like("docs/sub", "../a.f32"), ["b.f32", "deep/c.f32"]);
    assert_eq!(like("docs/sub", "/docs/sub/b.f32"), ["deep/c.f32"]);
    assert_eq!(like("", "f.f32").len(), 5);
    assert_eq!(mount.similar("docs/sub/b.f32"), ["deep/c.f32"]);
    let sub = mount.path("docs/.vexfs/similar/sub");
    let mut names: Vec<_> = fs::read_dir(&sub).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["b.f32", "deep"]);
    for dir in ["docs/sub", "docs/sub/deep"] {
        assert!(mount.path(dir).join(".vexfs/config").exists(), "{dir} has a control directory");
    }
}

#[test]
fn a_subdirectory_with_its_own_configuration_is_its_own_collection() {
    let mut mount = Mount::new();
    for dir in ["docs", "docs/own", "docs/own/deep", "docs/plain"] {
        mount.mkdir(dir);
    }
    mount.put("docs/a.f32", &[3.0, 4.0]);
    mount.put("docs/plain/b.f32", &[4.0, 3.0]);
    mount.put("docs/own/c.f32", &[3.0, 4.0]);
    mount.put("docs/own/deep/d.f32", &[0.0, 0.1]);
    assert_eq!(mount.attribute("docs", "user.vexfs.count"), "4");
    xattr::set(mount.path("docs/own"), "user.vexfs.metric", b"l2").unwrap();
    for _ in 0..2 {
        assert_eq!(mount.attribute("docs", "user.vexfs.count"), "2");
        assert_eq!(mount.attribute("docs/own", "user.vexfs.count"), "2");
        assert_eq!(mount.attribute("docs/own/deep", "user.vexfs.metric"), "l2");
        assert_eq!(mount.attribute("docs/plain", "user.vexfs.metric"), "cosine");
        assert_eq!(mount.similar("docs/own/c.f32"), ["deep/d.f32"]);
        let of_a = mount.similar("docs/a.f32");
        assert!(of_a.contains(&"plain/b.f32".to_owned()), "{of_a:?}");
        let distance = mount.attribute("docs/own/c.f32", "user.vexfs.distance.deep/d.f32");
        assert!((distance.parse::<f32>().unwrap() - (9f32 + 3.9 * 3.9).sqrt()).abs() < 1e-5, "{distance}");
        mount.remount();
    }
    // Another dimension is now possible there.
    mount.mkdir("docs/third");
    xattr::set(mount.path("docs/third"), "user.vexfs.dim", b"5").unwrap();
    mount.put("docs/third/x.f32", &[1.0; 5]);
    assert_eq!(mount.status("docs/third/x.f32"), "indexed");
    let answer = mount.ask_json("docs", &json!({"vector": [1.0, 1.0, 1.0, 1.0, 1.0]}));
    assert_eq!(paths(&answer), ["third/x.f32"]);
}

#[test]
fn a_file_from_elsewhere_is_compared_by_the_metric_of_where_it_is_asked() {
    let mount = Mount::new();
    mount.mkdir("angles");
    mount.mkdir("places");
    xattr::set(mount.path("places"), "user.vexfs.metric", b"l2").unwrap();
    mount.put("angles/a.f32", &[0.0, 1.0]);
    mount.put("angles/b.f32", &[5.0, 0.0]);
    mount.put("places/c.f32", &[1.0, 0.0]);
    mount.put("places/d.f32", &[1.0, 0.5]);
    let answer = mount.ask_json("angles", &json!({"like": "../places/c.f32"}));
    assert_eq!((paths(&answer), &answer["metric"]), (vec!["b.f32".into(), "a.f32".into()], &json!("cosine")));
    // Above both it is the file's own, and the other collection is left out.
    let answer = mount.ask_json("", &json!({"like": "places/c.f32"}));
    assert_eq!((paths(&answer), &answer["metric"]), (vec!["places/d.f32".into()], &json!("l2")));
    // A file with names in both has neighbours in both.
    fs::hard_link(mount.path("angles/b.f32"), mount.path("places/b.f32")).unwrap();
    for (dir, metric) in [("angles", "cosine"), ("places", "l2")] {
        let answer = mount.json(&format!("{dir}/.vexfs/similar/b.f32/results.json"));
        assert_eq!(answer["metric"], metric, "{dir}: {answer}");
        assert!(!paths(&answer).is_empty(), "{dir}: {answer}");
    }
}

#[test]
fn a_name_that_is_not_recognised_is_no_way_to_a_vector() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.mkdir("docs/kept");
    for number in 0..6u8 {
        mount.put(&format!("docs/{number}.f32"), &[f32::from(number) + 1.0, 1.0]);
        let kept = mount.path(format!("docs/kept/{number}.orig"));
        fs::hard_link(mount.path(format!("docs/{number}.f32")), kept).unwrap();
    }
    mount.put("docs/kept/own.f32", &[9.0, 1.0]);
    let query = json!({"vector": [1.0, 1.0], "k": 2});
    let begun = Instant::now();
    let below = mount.ask_json("docs/kept", &query);
    assert_eq!((paths(&below), &below["complete"]), (vec!["own.f32".into()], &json!(true)), "{below}");
    let above = mount.ask_json("docs", &query);
    assert_eq!((paths(&above), &above["complete"]), (vec!["0.f32".into(), "1.f32".into()], &json!(true)));
    assert!(begun.elapsed() < Duration::from_millis(400), "{:?}", begun.elapsed());
}

#[test]
fn rows_of_a_file_are_files_of_their_own() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.mkdir("docs/sub");
    let rows: Vec<Vec<f32>> = (0..12u8).map(|i| vec![f32::from(i), 1.0, 0.5]).collect();
    fs::write(mount.path("docs/sub/all.npy"), npy(&rows)).unwrap();
    mount.put("docs/one.f32", &rows[3]);
    let dir = mount.path("docs/.vexfs/rows/sub/all.npy");
    let mut names: Vec<_> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names.len(), 12);
    assert_eq!((names[0].to_str(), names[11].to_str()), (Some("000000.f32"), Some("000011.f32")));
    for (i, row) in rows.iter().enumerate() {
        let path = dir.join(format!("{i:06}.f32"));
        assert_eq!(read(&path), f32_bytes(row));
        assert_eq!(fs::metadata(&path).unwrap().len(), 12);
    }
    for missing in ["000012.f32", "12.f32", "0000001.f32", "000001.npy"] {
        assert_eq!(errno(fs::read(dir.join(missing))), libc::ENOENT, "{missing}");
    }
    assert_eq!(errno(File::options().write(true).open(dir.join("000001.f32"))), libc::EROFS);
    let set = mount.path("docs/.vexfs/similar/one.f32");
    let first = shell(&set, "ls | sed -n 1p");
    assert!(first.ends_with("_all.npy#3\n"), "{first}");
    let link = set.join(first.trim_end());
    assert_eq!(read(&link), f32_bytes(&rows[3]));
    assert_eq!(fs::canonicalize(&link).unwrap(), dir.join("000003.f32"));
}

#[test]
fn the_table_of_ids_has_the_bytes_of_a_name() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"a\xff\tb\\.f32");
    fs::write(mount.path("docs").join(name), f32_bytes(&[1.0])).unwrap();
    let table = fs::read(mount.path("docs/.vexfs/ids.tsv")).unwrap();
    assert_eq!(table, b"id\tpath\trow\n0\ta\xff\\tb\\\\.f32\t0\n");
}

#[test]
fn ids_name_rows_and_stay_with_them() {
    let mut mount = Mount::new();
    mount.mkdir("docs");
    let rows: Vec<Vec<f32>> = (0..5u8).map(|i| vec![f32::from(i) + 1.0, 1.0]).collect();
    fs::write(mount.path("docs/all.npy"), npy(&rows)).unwrap();
    mount.put("docs/a.f32", &[9.0, 1.0]);
    mount.put("docs/b.f32", &[1.0, 9.0]);
    let table = || fs::read_to_string(mount.path("docs/.vexfs/ids.tsv")).unwrap();
    let want = "id\tpath\trow\n0\tall.npy\t0\n1\tall.npy\t1\n2\tall.npy\t2\n3\tall.npy\t3\n4\tall.npy\t4\n5\ta.f32\t0\n6\tb.f32\t0\n";
    assert_eq!(table(), want);
    fs::rename(mount.path("docs/a.f32"), mount.path("docs/c.f32")).unwrap();
    fs::remove_file(mount.path("docs/b.f32")).unwrap();
    let table_now = fs::read_to_string(mount.path("docs/.vexfs/ids.tsv")).unwrap();
    assert!(table_now.ends_with("4\tall.npy\t4\n5\tc.f32\t0\n"), "{table_now}");
    mount.remount();
    assert_eq!(fs::read_to_string(mount.path("docs/.vexfs/ids.tsv")).unwrap(), table_now);
    let answer = mount.ask_json("docs", &json!({"vector": [9.0, 1.0], "k": 1}));
    assert_eq!(answer["hits"][0]["id"], 5);
}

#[test]
fn the_command_line_prints_tables_paths_and_json() {
    let mount = Mount::new();
    collection(&mount, "l2");
    let want = hits(&mount.ask_json("docs", &json!({"like": "03.f32", "k": 4})));
    let names: Vec<_> = want.iter().map(|hit| hit.path.clone()).collect();
    let base = ["docs", "--like", "docs/03.f32", "-k", "4"];
    let with = |more: &[&str]| {
        let output = search(&mount, &[&base[..], more].concat());
        assert_eq!(code(&output), 0, "{}", text(&output.stderr));
        text(&output.stdout)
    };
    let table = with(&[]);
    for name in &names {
        assert!(table.contains(name.as_str()), "{name} is not in {table}");
    }
    // The printed paths can be opened from where the command ran.
    let listed = with(&["--paths"]);
    let files: Vec<_> = names.iter().map(|name| format!("docs/{name}")).collect();
    assert_eq!(listed.lines().collect::<Vec<_>>(), files);
    let separated = with(&["-0"]);
    assert_eq!(separated.split_terminator('\0').collect::<Vec<_>>(), listed.lines().collect::<Vec<_>>());
    let json: Value = serde_json::from_str(&with(&["--json"])).unwrap();
    assert_eq!((hits(&json), &json["schema"]), (want.clone(), &json!(1)));
    let json: Value = serde_json::from_str(&with(&["--json", "--exact"])).unwrap();
    assert_eq!(hits(&json), want);
    let json: Value = serde_json::from_str(&with(&["--json", "--recall", "0.99"])).unwrap();
    assert_eq!(hits(&json), want);
    let json: Value = serde_json::from_str(&with(&["--json", "--ef", "50"])).unwrap();
    assert_eq!(hits(&json), want);
    let max = want[1].distance.to_string();
    let json: Value = serde_json::from_str(&with(&["--json", "--max", &max])).unwrap();
    assert_eq!(hits(&json), want[..2]);
}

#[test]
fn the_command_line_takes_a_vector_from_its_input() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    let want = hits(&mount.ask_json("docs", &json!({"vector": query, "k": 3})));
    for input in [f32_bytes(&query), format!("{query:?}").into_bytes(), npy(std::slice::from_ref(&query))] {
        let mut child = Command::new(VEXFS)
            .args(["search", "docs", "--vector", "-", "-k", "3", "--json"])
            .current_dir(mount.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(code(&output), 0);
        assert_eq!(hits(&serde_json::from_slice(&output.stdout).unwrap()), want);
    }
}

#[test]
fn exit_codes_tell_what_happened() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.mkdir("empty");
    mount.put("docs/a.f32", &[1.0, 0.0]);
    mount.put("docs/b.f32", &[0.0, 1.0]);
    fs::write(mount.path("docs/note.txt"), b"x").unwrap();
    let wrong = mount.outside("wrong.f32");
    fs::write(&wrong, f32_bytes(&[1.0; 3])).unwrap();
    let fine = mount.outside("fine.f32");
    fs::write(&fine, f32_bytes(&[1.0; 2])).unwrap();
    let outside = mount.outside(".");
    let (wrong, fine, outside) = (wrong.to_str().unwrap(), fine.to_str().unwrap(), outside.to_str().unwrap());
    for (args, want) in [
        (vec!["docs", "--like", "docs/a.f32"], 0),
        (vec!["docs", "--like", "docs/a.f32", "--max", "0.1"], 1),
        (vec!["empty", "--vector", fine], 1),
        (vec!["docs"], 2),
        (vec!["docs", "--like", "docs/a.f32", "-k", "many"], 2),
        (vec!["docs", "--like", "docs/a.f32", "--vector", fine], 2),
        (vec!["docs", "--like", "docs/a.f32", "--nonsense"], 2),
        (vec![outside, "--vector", fine], 3),
        (vec!["docs", "--vector", wrong], 4),
        (vec!["docs", "--like", "docs/note.txt"], 4),
        (vec!["docs", "--like", "docs/none.f32"], 4),
        (vec!["docs", "--vector", "/nonexistent/q.f32"], 4),
        (vec!["docs", "--like", "docs/a.f32", "-k", "10001"], 4),
    ] {
        let output = search(&mount, &args);
        assert_eq!(code(&output), want, "{args:?}: {}{}", text(&output.stdout), text(&output.stderr));
        assert_eq!(output.stderr.is_empty(), want <= 1, "{args:?}: {}", text(&output.stderr));
    }
    let output = search(&mount, &["docs", "--vector", wrong]);
    assert!(text(&output.stderr).contains("dimension 3, collection has 2"), "{}", text(&output.stderr));
}

#[test]
fn a_caller_finds_only_what_it_may_read() {
    if !is_root() {
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    fs::set_permissions(mount.outside("."), Permissions::from_mode(0o755)).unwrap();
    for dir in ["docs", "docs/closed", "docs/open"] {
        mount.mkdir(dir);
    }
    for path in ["a", "secret", "closed/b", "open/c", "d"] {
        let path = format!("docs/{path}.f32");
        mount.put(&path, &[1.0, 0.0]);
        fs::set_permissions(mount.path(&path), Permissions::from_mode(0o644)).unwrap();
    }
    fs::set_permissions(mount.path("docs/secret.f32"), Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(mount.path("docs/closed"), Permissions::from_mode(0o700)).unwrap();
    let as_nobody = |script: &str| {
        let mut command = Command::new("bash");
        command.args(["-c", script]).current_dir(mount.root()).uid(NOBODY).gid(NOBODY).env("LC_ALL", "C");
        let output = run(&mut command);
        text(&output.stdout) + &text(&output.stderr)
    };
    let ask = r#"exec 3<> docs/.vexfs/query; echo '{"vector":[1,0],"k":5}' >&3; cat <&3"#;
    let nobody = || paths(&serde_json::from_str(&as_nobody(ask)).unwrap());
    let root = || paths(&mount.ask_json("docs", &json!({"vector": [1.0, 0.0], "k": 5})));
    assert_eq!(root(), ["a.f32", "closed/b.f32", "d.f32", "open/c.f32", "secret.f32"]);
    assert_eq!(nobody(), ["a.f32", "d.f32", "open/c.f32"]);
    assert_eq!(
        as_nobody("getfattr --only-values -n user.vexfs.similar docs/a.f32"),
        "0\td.f32\n0\topen/c.f32\n"
    );
    let listed = as_nobody("ls docs/.vexfs/similar/a.f32");
    assert!(listed.contains("d.f32") && !listed.contains("secret") && !listed.contains("b.f32"), "{listed}");
    let own = "(printf '\\0\\0\\200\\77\\0\\0\\200\\77' > docs/.vexfs/queries/mine) && cat docs/.vexfs/results/mine/results.json";
    let answer = as_nobody(own);
    assert_eq!(paths(&serde_json::from_str(&answer).unwrap()), ["a.f32", "d.f32", "open/c.f32"]);
    let denied = [
        "cat docs/.vexfs/similar/secret.f32/results.json",
        "ls docs/.vexfs/rows/secret.f32/",
        "getfattr -n user.vexfs.vector docs/secret.f32",
        "getfattr -n user.vexfs.distance.secret.f32 docs/a.f32",
        "getfattr -n user.vexfs.distance.closed/b.f32 docs/a.f32",
        "echo '[collection]' > docs/.vexfs/config",
        "setfattr -n user.vexfs.metric -v cosine docs",
    ];
    for script in denied {
        let said = as_nobody(script);
        assert!(said.contains("Permission denied"), "{script}: {said}");
    }
    let like = as_nobody(r#"exec 3<> docs/.vexfs/query; echo '{"like":"secret.f32"}' >&3; cat <&3"#);
    assert!(like.contains("EACCES"), "{like}");
    let ids = as_nobody("cat docs/.vexfs/ids.tsv docs/.vexfs/errors.jsonl");
    assert!(ids.contains("a.f32") && !ids.contains("secret") && !ids.contains("closed"), "{ids}");
    // The answer follows the permissions, at once.
    fs::set_permissions(mount.path("docs/secret.f32"), Permissions::from_mode(0o604)).unwrap();
    fs::set_permissions(mount.path("docs/d.f32"), Permissions::from_mode(0o640)).unwrap();
    assert_eq!(nobody(), ["a.f32", "open/c.f32", "secret.f32"]);
    fs::set_permissions(mount.path("docs/closed"), Permissions::from_mode(0o711)).unwrap();
    assert_eq!(nobody(), ["a.f32", "closed/b.f32", "open/c.f32", "secret.f32"]);
    std::os::unix::fs::chown(mount.path("docs/d.f32"), Some(NOBODY), None).unwrap();
    assert_eq!(nobody().len(), 5);
    // Somebody else's query is nobody's business.
    fs::write(mount.path("docs/.vexfs/queries/roots"), f32_bytes(&[1.0, 0.0])).unwrap();
    let said = as_nobody("cat docs/.vexfs/queries/roots docs/.vexfs/results/roots/results.json");
    assert!(said.contains("Permission denied") && !said.contains("hits"), "{said}");
}

#[test]
fn the_store_tells_about_itself() {
    let mount = Mount::new();
    collection(&mount, "l2");
    fs::write(mount.path("docs/bad.f32"), b"x").unwrap();
    let stats = mount.json(".vexfs/stats.json");
    assert_eq!((&stats["schema"], &stats["vectors"], &stats["pending"]), (&json!(1), &json!(50), &json!(0)));
    assert_eq!((&stats["pid"], &stats["read_only"]), (&json!(mount.pid()), &Value::Null));
    assert_eq!(stats["store"], mount.store().to_str().unwrap());
    assert_eq!(stats["mountpoint"], mount.root().to_str().unwrap());
    let own = &stats["collections"][0];
    assert_eq!(
        (&own["path"], &own["dim"], &own["metric"], &own["count"], &own["invalid"]),
        (&json!("/docs"), &json!(6), &json!("l2"), &json!(50), &json!(1))
    );
    assert_eq!(mount.json("docs/.vexfs/stats.json")["count"], 50);
    let sound =
        json!({"schema": 1, "status": "ok", "reason": null, "damage": [], "more_damage": 0, "panics": 0});
    assert_eq!(mount.json(".vexfs/health"), sound);
    let version = fs::read_to_string(mount.path(".vexfs/version")).unwrap();
    assert_eq!(version.trim_end(), env!("CARGO_PKG_VERSION"));
    let readme = fs::read_to_string(mount.path(".vexfs/README")).unwrap();
    assert!(readme.len() < 2048 && readme.contains(".vexfs/similar"), "{} bytes", readme.len());
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    for line in ["vexfs_up 1", "vexfs_vectors 50", "vexfs_vectors_pending 0"] {
        assert!(metrics.lines().any(|got| got == line), "{line} is not in\n{metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    assert_eq!(errno(fs::read(mount.path("docs/.vexfs/health"))), libc::ENOENT, "only at the root");
    mount.sync();
}

#[test]
fn a_search_beside_a_file_that_changes_its_dimension_is_answered_or_refused() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 0.0, 0.0]);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Acquire) {
                    let mut file = mount.query_file("docs");
                    file.write_all(b"{\"vector\":[1,0,0]}\n").unwrap();
                    let mut answer = String::new();
                    file.read_to_string(&mut answer).unwrap();
                    let answer: Value = serde_json::from_str(&answer).unwrap();
                    let code = &answer["error"]["code"];
                    assert!(answer["hits"].is_array() || code == "EINVAL", "{answer}");
                }
            });
        }
        for round in 0..400 {
            let dim = if round % 2 == 0 { 5000 } else { 3 };
            let mut vector = vec![0.0; dim];
            vector[0] = 1.0;
            mount.put("docs/a.f32", &vector);
        }
        done.store(true, Ordering::Release);
    });
    assert_eq!(mount.attribute("docs", "user.vexfs.dim"), "3");
    let metrics = fs::read_to_string(mount.path(".vexfs/metrics")).unwrap();
    let panics = metrics.lines().filter(|line| line.contains("panic") && !line.starts_with('#'));
    assert!(panics.clone().all(|line| line.ends_with(" 0")), "{}", panics.collect::<Vec<_>>().join("\n"));
}

#[test]
fn recall_is_asked_measured_and_shown() {
    let mount = Mount::new();
    let dir = mount.mkdir("docs");
    assert_eq!(mount.attribute("docs", "user.vexfs.recall"), "1.000", "nothing is there to be missed");
    configure(&mount, "docs", "[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n");
    let mut random = Random(12);
    let rows: Vec<_> = (0..1500).map(|_| random.vector(16)).collect();
    fs::write(mount.path("docs/all.npy"), npy(&rows)).unwrap();
    mount.sync();
    let shown: f64 = mount.attribute("docs", "user.vexfs.recall").parse().unwrap();
    assert!((0.95..=1.0).contains(&shown), "{shown}");
    let stats = &mount.json("docs/.vexfs/stats.json")["recall"];
    assert_eq!((&stats["asked"], &stats["measured_on"]), (&json!(0.95), &json!(1500)));
    assert_eq!(stats["estimate"].as_f64(), Some(shown));
    assert!(stats["ef"].as_u64().unwrap() >= 10);

    let query = random.vector(16);
    let ask = |request: Value| mount.ask_json("docs", &request);
    assert_eq!(ask(json!({"vector": query, "recall": 0.9}))["exact"], false);
    assert_eq!(ask(json!({"vector": query, "recall": 1.0}))["exact"], true);
    for request in [
        json!({"vector": query, "recall": 0}),
        json!({"vector": query, "recall": 1.5}),
        json!({"vector": query, "recall": 0.9, "ef": 10}),
        json!({"vector": query, "recall": 0.9, "exact": true}),
    ] {
        assert_eq!(ask(request)["error"]["code"], "EINVAL");
    }
    fs::write(mount.path("docs/.vexfs/queries/q"), f32_bytes(&query)).unwrap();
    let through_path = |options: &str| mount.json(&format!("docs/.vexfs/{options}/results/q/results.json"));
    assert_eq!(through_path("@k=3,recall=1")["exact"], true);
    assert_eq!(through_path("@recall=0.9")["hits"].as_array().unwrap().len(), 10);

    xattr::set(&dir, "user.vexfs.recall", b"0.8").unwrap();
    assert_eq!(mount.json("docs/.vexfs/stats.json")["recall"]["asked"], 0.8);
    assert_eq!(errno(xattr::set(&dir, "user.vexfs.recall", b"1")), libc::EINVAL);
    xattr::set(&dir, "user.vexfs.quant", b"none").unwrap();
    assert_eq!(mount.attribute("docs", "user.vexfs.quant"), "none");
    assert_eq!(errno(xattr::set(&dir, "user.vexfs.quant", b"sq4")), libc::EINVAL);
    mount.sync();
    assert_eq!(mount.json("docs/.vexfs/stats.json")["recall"]["measured_on"], 1500, "of the new graph");
}

#[test]
fn a_graph_and_a_scan_answer_alike_through_every_option() {
    let mount = Mount::new();
    mount.mkdir("docs");
    configure(&mount, "docs", "[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n");
    let mut random = Random(11);
    let rows: Vec<_> = (0..600).map(|_| random.vector(8)).collect();
    fs::write(mount.path("docs/all.npy"), npy(&rows)).unwrap();
    mount.sync();
    assert_eq!(mount.status("docs/all.npy"), "indexed");
    let stats = mount.json("docs/.vexfs/stats.json");
    assert_eq!((&stats["graph_nodes"], &stats["pending"]), (&json!(600), &json!(0)));
    for _ in 0..20 {
        let query = random.vector(8);
        let graph = mount.ask_json("docs", &json!({"vector": query, "k": 10, "ef": 600}));
        let scan = mount.ask_json("docs", &json!({"vector": query, "k": 10, "exact": true}));
        assert_eq!((&graph["exact"], &scan["exact"]), (&json!(false), &json!(true)));
        assert_eq!(hits(&graph), hits(&scan));
    }
    let many = mount.ask_json("docs", &json!({"vector": rows[0], "k": 600}));
    assert_eq!(many["hits"].as_array().unwrap().len(), 600);
}

#[test]
fn a_condition_holds_at_every_door() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    for (path, lang, year) in
        [("03.f32", "en", "2019"), ("sub/04.f32", "de", "2021"), ("sub/rows.npy", "en", "2024")]
    {
        xattr::set(mount.path("docs").join(path), "user.lang", lang.as_bytes()).unwrap();
        xattr::set(mount.path("docs").join(path), "user.year", year.as_bytes()).unwrap();
    }
    let all = hits(&mount.ask_json("docs", &json!({"vector": query, "k": 50})));
    let text = r#"lang in ("en",fr) and year>=2019.5 or year~*21"#;
    let want: Vec<_> = all
        .iter()
        .filter(|hit| hit.path.starts_with("sub/rows") || hit.path == "sub/04.f32")
        .take(12)
        .cloned()
        .collect();
    assert_eq!(want.len(), 12);
    let request = json!({"vector": query, "k": 12, "where": text});
    assert_eq!(hits(&mount.ask_json("docs", &request)), want, "JSON");

    let header = json!({"dtype": "f32", "rows": 1, "dim": DIM, "k": 12, "where": text});
    let binary = [format!("{header}\n").as_bytes(), &f32_bytes(&query)].concat();
    assert_eq!(records(&mount.ask("docs", &binary)), ids_and_distances(&want), "binary");
    let at_once = ask_at_once(&mount.query_file("docs"), &binary, 4000).unwrap();
    assert_eq!(records(&at_once), ids_and_distances(&want), "system call");

    fs::write(mount.path("docs/.vexfs/queries/q.f32"), f32_bytes(&query)).unwrap();
    fs::write(mount.path("docs/.vexfs/queries/q"), request.to_string()).unwrap();
    let results = |path: &str| hits(&mount.json(&format!("docs/.vexfs/{path}/results.json")));
    assert_eq!(results(&format!("@k=12,where={text}/results/q.f32")), want, "a path");
    assert_eq!(results(&format!("@where={text},k=12,exact/results/q.f32")), want, "a path");
    assert_eq!(results("results/q"), want, "a dropped request");
    let german = results("@where=lang=de/results/q");
    assert_eq!(german.len(), 1, "what the path says stands for what the request says");

    let vector = mount.outside("q.f32");
    fs::write(&vector, f32_bytes(&query)).unwrap();
    let args = ["docs", "--vector", vector.to_str().unwrap(), "-k", "12", "--json", "--where", text];
    let output = search(&mount, &args);
    assert_eq!(code(&output), 0, "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(hits(&serde_json::from_slice(&output.stdout).unwrap()), want, "vexfs search");

    // A file is not its own neighbour, and the answer follows the attributes at once.
    let similar = || results("@where=lang=en,k=30/similar/03.f32");
    let of_rows = similar();
    assert!(of_rows.len() == 20 && of_rows.iter().all(|hit| hit.path == "sub/rows.npy"), "{of_rows:?}");
    xattr::set(mount.path("docs/05.f32"), "user.lang", b"en").unwrap();
    assert_eq!(similar().len(), 21);
    xattr::remove(mount.path("docs/sub/rows.npy"), "user.lang").unwrap();
    assert_eq!(similar().iter().map(|hit| hit.path.as_str()).collect::<Vec<_>>(), ["05.f32"]);
    fs::remove_file(mount.path("docs/05.f32")).unwrap();
    assert_eq!(similar(), []);
    let output = search(&mount, &["docs", "--like", "docs/03.f32", "--where", "lang=en"]);
    assert_eq!(code(&output), 1, "no result");
}

#[test]
fn what_is_wrong_with_a_condition_is_said_with_its_place() {
    let mount = Mount::new();
    let query = collection(&mount, "l2");
    let want = "request: where: at 6, want a value (\"\" is the empty one), found the end";
    let answer = mount.ask_json("docs", &json!({"vector": query, "where": "lang="}));
    assert_eq!(answer["error"], json!({"code": "EINVAL", "message": want}));
    let header = format!("{{\"dtype\":\"f32\",\"rows\":1,\"dim\":{DIM},\"where\":\"lang=\"}}\n");
    assert_eq!(errno(mount.query_file("docs").write_all(header.as_bytes())), libc::EINVAL);
    fs::write(mount.path("docs/.vexfs/queries/q"), "{\"like\":\"03.f32\",\"where\":\"lang=\"}").unwrap();
    let noted = text(&read(&mount.path("docs/.vexfs/errors.jsonl")));
    assert!(noted.contains("want a value"), "{noted}");
    let output = search(&mount, &["docs", "--like", "docs/03.f32", "--where", "lang="]);
    assert_eq!(code(&output), 4);
    assert!(text(&output.stderr).contains(want), "{}", text(&output.stderr));
    let long = format!("a={}", "x".repeat(5000));
    let answer = mount.ask_json("docs", &json!({"vector": query, "where": long}));
    assert_eq!(answer["error"]["code"], "EMSGSIZE");
}

#[test]
fn a_condition_tells_nothing_of_what_a_caller_may_not_read() {
    if !is_root() {
        return;
    }
    let mount = Mount::with_options(&["-o", "allow_other"]);
    fs::set_permissions(mount.outside("."), Permissions::from_mode(0o755)).unwrap();
    mount.mkdir("docs");
    for (name, mode) in [("a", 0o644), ("b", 0o600), ("c", 0o644)] {
        let path = format!("docs/{name}.f32");
        mount.put(&path, &[1.0, 0.0]);
        xattr::set(mount.path(&path), "user.lang", if name == "c" { b"de" } else { b"en" }).unwrap();
        fs::set_permissions(mount.path(&path), Permissions::from_mode(mode)).unwrap();
    }
    let request = json!({"vector": [1.0, 0.0], "where": "lang=en"});
    let nobody = || {
        let mut command = Command::new("bash");
        command.args(["-c", &format!("exec 3<> docs/.vexfs/query; echo '{request}' >&3; cat <&3")]);
        let output = run(command.current_dir(mount.root()).uid(NOBODY).gid(NOBODY));
        paths(&serde_json::from_slice(&output.stdout).unwrap())
    };
    // Both before and after somebody who may has asked the same.
    assert_eq!(nobody(), ["a.f32"]);
    assert_eq!(paths(&mount.ask_json("docs", &request)), ["a.f32", "b.f32"]);
    assert_eq!(nobody(), ["a.f32"]);
    fs::set_permissions(mount.path("docs/b.f32"), Permissions::from_mode(0o604)).unwrap();
    assert_eq!(nobody(), ["a.f32", "b.f32"]);
    xattr::set(mount.path("docs/b.f32"), "user.lang", b"de").unwrap();
    assert_eq!(nobody(), ["a.f32"]);
}
