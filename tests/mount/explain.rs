//! How searches are answered, as they tell it: each plan where it must be chosen, and counts that agree with the truth.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::harness::{Mount, Random, VEXFS, is_root, npy, run, text, wait_for};

const ROWS: usize = 400;
const FEW: usize = 400;

/// Of so many elements that codes are less to read.
const DIM: usize = 256;

/// `docs` has a measured graph of 400 rows in `all.npy` and 400 in `few/`; `docs/.vexfs/config` begins with `config`.
fn mounted(config: &str) -> (Mount, Vec<Vec<f32>>) {
    let mount = Mount::with_options(&["-o", "allow_other"]);
    mount.mkdir("docs");
    let config = format!("[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n{config}");
    fs::write(mount.path("docs/.vexfs/config"), config).unwrap();
    mount.mkdir("docs/few");
    let mut random = Random(71);
    let rows: Vec<_> = (0..ROWS + FEW).map(|_| random.vector(DIM)).collect();
    fs::write(mount.path("docs/all.npy"), npy(&rows[..ROWS])).unwrap();
    fs::write(mount.path("docs/few/few.npy"), npy(&rows[ROWS..])).unwrap();
    mount.sync();
    // It waits for a minute at most, and a busy machine may take longer.
    wait_for("recall to be measured", || mount.try_attribute("docs", "user.vexfs.recall").is_ok());
    (mount, rows)
}

/// What an explained request says of its only collection; what it finds is what is found without.
#[track_caller]
fn explained(mount: &Mount, dir: &str, request: &Value) -> Value {
    let mut asked = request.clone();
    asked["explain"] = json!(true);
    let answer = mount.ask_json(dir, &asked);
    let explain = &answer["explain"];
    assert_eq!(explain["collections"].as_array().map(Vec::len), Some(1), "{answer}");
    let collection = explain["collections"][0].clone();
    assert_eq!(explain["ran"], !collection["run"].is_null(), "{answer}");
    if explain["ran"] == true {
        let plain = mount.ask_json(dir, request);
        assert_eq!(plain.get("explain"), None, "{plain}");
        assert_eq!((&plain["hits"], &plain["exact"]), (&answer["hits"], &answer["exact"]));
        assert_eq!(collection["run"]["answered_by"] == "rows", answer["exact"] == true, "{answer}");
    }
    collection
}

#[track_caller]
fn plan(collection: &Value, plan: &str, why: &str) {
    assert_eq!((&collection["plan"], &collection["why"]), (&json!(plan), &json!(why)), "{collection}");
}

fn command(mount: &Mount, dir: &str, more: &[&str]) -> Output {
    run(Command::new(VEXFS).args(["index", "explain"]).arg(mount.path(dir)).args(more))
}

#[test]
fn each_plan_is_told_where_it_must_be_chosen() {
    let (mount, rows) = mounted("");
    let vector = &rows[17];
    let all = (ROWS + FEW) as u64;

    let walk = explained(&mount, "docs", &json!({"vector": vector}));
    plan(&walk, "graph", "nothing_refused");
    assert_eq!(walk["ef"]["from"], "measured");
    // The second file may have come while the first was being measured.
    assert!(walk["recall"]["measured_on"].as_u64().is_some_and(|rows| rows >= ROWS as u64), "{walk}");
    assert_eq!(walk["recall"]["asked"], 0.95);
    let expected = walk["recall"]["expected"].as_f64().unwrap();
    assert!((0.95..=1.0).contains(&expected), "{walk}");
    let did = &walk["run"];
    let number = |field: &str| did[field].as_u64().unwrap();
    assert!(number("expanded") > 5 && number("expanded") < number("codes"), "{walk}");
    assert!(number("rows") >= 10 && number("rows") < all, "{walk}");

    let walk = explained(&mount, "docs", &json!({"vector": vector, "ef": 33}));
    assert_eq!(walk["ef"], json!({"value": 33.0, "used": 33, "from": "asked"}));
    assert_eq!(walk["recall"]["asked"], Value::Null);

    for (request, why) in [
        (json!({"vector": vector, "exact": true}), "exact_asked"),
        (json!({"vector": vector, "recall": 1.0}), "whole_recall_asked"),
    ] {
        let scan = explained(&mount, "docs", &request);
        plan(&scan, "rows", why);
        assert_eq!((&scan["passing"], &scan["run"]["rows"]), (&json!(all), &json!(all)));
        assert_eq!((&scan["recall"]["expected"], &scan["run"]["codes"]), (&json!(1.0), &json!(0)));
    }
    let scan = explained(&mount, "docs", &json!({"vector": vector, "k": 9999}));
    plan(&scan, "rows", "few_in_graph");

    // Below a directory with so few of the rows that their codes are less to read than the way to them.
    let codes = explained(&mount, "docs/few", &json!({"vector": vector, "k": 5}));
    plan(&codes, "codes", "cost");
    assert_eq!(
        (&codes["vectors"], &codes["covered"], &codes["passing"]),
        (&json!(all), &json!(FEW), &json!(FEW))
    );
    assert_eq!(codes["run"]["codes"], FEW, "{codes}");
    let cost = |name: &str| codes["costs"][name].as_f64().unwrap();
    assert!(cost("codes_us") < cost("rows_us") && cost("codes_us") < cost("graph_us"), "{codes}");

    fs::write(mount.path("docs/.vexfs/config"), "[collection]\nmetric = \"l2\"\n").unwrap();
    let few = explained(&mount, "docs/few", &json!({"like": "few.npy", "row": 3}));
    plan(&few, "rows", "below_exact_below");
    assert_eq!((&few["passing"], &few["run"]["rows"]), (&json!(FEW), &json!(FEW)));
}

#[test]
fn rows_are_scanned_where_there_are_no_codes() {
    let (mount, rows) = mounted("quant = \"none\"\n");
    let scan = explained(&mount, "docs/few", &json!({"vector": rows[17], "k": 5}));
    plan(&scan, "rows", "cost");
    assert_eq!((&scan["costs"]["codes_us"], &scan["run"]["rows"]), (&Value::Null, &json!(FEW)));
}

#[test]
fn a_walk_that_gives_up_is_told() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let config = "[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n";
    fs::write(mount.path("docs/.vexfs/config"), config).unwrap();
    let mut random = Random(72);
    for (dir, shift) in [("near", 0.0), ("far", 50.0)] {
        mount.mkdir(&format!("docs/{dir}"));
        let mut row = || random.vector(8).iter().map(|value| value + shift).collect::<Vec<f32>>();
        let rows: Vec<_> = (0..6000).map(|_| row()).collect();
        fs::write(mount.path(format!("docs/{dir}/rows.npy")), npy(&rows)).unwrap();
    }
    mount.sync();
    // Half of the rows pass, and none of those that are near.
    let told = explained(&mount, "docs/far", &json!({"vector": vec![0.1; 8], "ef": 20}));
    plan(&told, "graph", "cost");
    let did = &told["run"];
    assert_eq!((&did["walk_gave_up"], &did["answered_by"]), (&json!("outlook"), &json!("codes")), "{told}");
    assert!(did["codes"].as_u64().unwrap() > 6000, "{told}");
    let lines = text(&command(&mount, "docs/far", &["--like", "x", "--ef", "20"]).stderr);
    assert!(lines.contains("x: "), "{lines}");
    fs::write(mount.outside("q.vec"), "0.1 ".repeat(8)).unwrap();
    let q = mount.outside("q.vec");
    let output = command(&mount, "docs/far", &["--vector", q.to_str().unwrap(), "--ef", "20"]);
    let lines = text(&output.stdout);
    assert!(
        lines.contains("\ngave up      the walk: too little of what is near the query passes"),
        "{lines}"
    );
    assert!(
        lines.contains("\nanswered by  scan of codes\n")
            && lines.contains("\nhits         10 of 10 wanted, in ")
    );
}

#[test]
fn what_the_graph_lacks_is_counted() {
    let mount = Mount::new();
    mount.mkdir("docs");
    let config = "[collection]\nmetric = \"l2\"\n[index]\nexact_below = 100\n";
    fs::write(mount.path("docs/.vexfs/config"), config).unwrap();
    let mut random = Random(73);
    let mut rows = |count| npy(&(0..count).map(|_| random.vector(8)).collect::<Vec<_>>());
    fs::write(mount.path("docs/all.npy"), rows(500)).unwrap();
    // A snapshot has the graph that was saved last, and builds none.
    mount.mkdir(".vexfs/snapshots/before");
    mount.sync();
    fs::write(mount.path("docs/new.npy"), rows(40)).unwrap();
    mount.mkdir(".vexfs/snapshots/after");
    let request = json!({"vector": vec![0.5; 8]});
    let without = explained(&mount, ".vexfs/snapshots/before/docs", &request);
    plan(&without, "rows", "no_graph");
    assert_eq!((&without["pending"], &without["run"]["rows"]), (&json!(500), &json!(500)));
    let with = explained(&mount, ".vexfs/snapshots/after/docs", &request);
    plan(&with, "graph", "nothing_refused");
    assert_eq!((&with["passing"], &with["pending"]), (&json!(540), &json!(40)));
    assert!(with["run"]["rows"].as_u64().unwrap() >= 50, "{with}");
    // It was saved before it was measured, or with what was measured then.
    assert_ne!(with["ef"]["from"], "asked");
}

#[test]
fn without_a_query_plans_are_told_and_nothing_is_searched() {
    let (mount, _) = mounted("");
    let answer = mount.ask_json("docs", &json!({"explain": true, "k": 7}));
    assert_eq!((&answer["k"], &answer["hits"], &answer["complete"]), (&json!(7), &json!([]), &json!(false)));
    assert_eq!((&answer["metric"], &answer["exact"]), (&json!("l2"), &json!(false)));
    let walk = explained(&mount, "docs", &json!({}));
    plan(&walk, "graph", "nothing_refused");
    assert_eq!((&walk["run"], &walk["ef"]["used"]), (&Value::Null, &Value::Null));
    plan(&explained(&mount, "docs/few", &json!({})), "codes", "cost");

    let output = command(&mount, "docs", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let lines = text(&output.stdout);
    assert!(lines.starts_with("collection   /docs\nvectors      800, dimension 256, l2\n"), "{lines}");
    assert!(lines.contains("\nplan         walk through the graph: every row may be returned"), "{lines}");
    let output = command(&mount, "docs", &["--exact", "--json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&answer["schema"], &answer["explain"]["ran"]), (&json!(1), &json!(false)));
    plan(&answer["explain"]["collections"][0], "rows", "exact_asked");

    mount.mkdir("empty");
    let output = command(&mount, "empty", &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("there are no vectors to search"), "{}", text(&output.stderr));
}

#[test]
fn what_is_left_out_is_told() {
    let mount = Mount::new();
    for (dir, metric, vector) in
        [("a", "l2", &[1.0, 2.0][..]), ("b", "l2", &[1.0, 2.0, 3.0]), ("c", "ip", &[3.0, 4.0])]
    {
        mount.mkdir(dir);
        fs::write(mount.path(dir).join(".vexfs/config"), format!("[collection]\nmetric = \"{metric}\"\n"))
            .unwrap();
        mount.put(&format!("{dir}/v.f32"), vector);
    }
    let answer = mount.ask_json("", &json!({"like": "a/v.f32", "explain": true}));
    let told = answer["explain"]["collections"].as_array().unwrap();
    let left_out: Vec<_> = told.iter().map(|one| (&one["path"], &one["left_out"])).collect();
    let want = [("/a", Value::Null), ("/b", json!("dimension")), ("/c", json!("metric"))];
    for ((path, left), (want_path, want_left)) in left_out.into_iter().zip(want) {
        assert_eq!((path, left), (&json!(want_path), &want_left), "{answer}");
    }
    assert_eq!((told.len(), &told[1]["plan"]), (3, &Value::Null));
    let output = command(&mount, "", &["--like", mount.path("a/v.f32").to_str().unwrap()]);
    assert!(text(&output.stdout).contains("left out     its dimension is not the query's\n"));
    // A failure is that of the search.
    fs::write(mount.outside("q.vec"), "1 2 3 4").unwrap();
    let output = command(&mount, "a", &["--vector", mount.outside("q.vec").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(4));
    assert!(text(&output.stderr).contains("dimension 4, collection has 2"), "{}", text(&output.stderr));
}

#[test]
fn only_what_the_caller_may_read_passes() {
    if !is_root() {
        return;
    }
    let (mount, _) = mounted("");
    fs::set_permissions(mount.outside(""), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(mount.path("docs/all.npy"), fs::Permissions::from_mode(0o600)).unwrap();
    let script = "exec 3<>.vexfs/query; echo '{\"explain\":true}' >&3; cat <&3";
    let mut nobody = Command::new("bash");
    nobody.args(["-c", script]).current_dir(mount.path("docs")).uid(65534).gid(65534);
    let answer: Value = serde_json::from_slice(&run(&mut nobody).stdout).unwrap();
    let docs = &answer["explain"]["collections"][0];
    assert_eq!((&docs["covered"], &docs["passing"]), (&json!(ROWS + FEW), &json!(FEW)), "{answer}");
}

#[test]
fn every_form_of_a_request_may_ask_and_records_may_not() {
    let mount = Mount::new();
    mount.mkdir("docs");
    mount.put("docs/a.f32", &[1.0, 2.0]);
    mount.put("docs/b.f32", &[1.0, 3.0]);
    let set = mount.json("docs/.vexfs/@explain,k=1/similar/a.f32/results.json");
    assert_eq!(set["explain"]["collections"][0]["why"], "below_exact_below", "{set}");
    fs::write(mount.path("docs/.vexfs/queries/q"), r#"{"vector":[1,2],"explain":true}"#).unwrap();
    let dropped = mount.json("docs/.vexfs/results/q/results.json");
    assert_eq!(dropped["explain"]["collections"][0]["run"]["rows"], 2, "{dropped}");
    let none = mount.ask_json("docs", &json!({"explain": false}));
    assert_eq!(none["error"]["code"], "EINVAL", "{none}");
    let header = b"{\"dtype\":\"f32\",\"rows\":1,\"dim\":2,\"explain\":true}\n";
    let refused = std::io::Write::write_all(&mut mount.query_file("docs"), header);
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_condition_is_explained_with_a_query_and_without() {
    let mount = Mount::new();
    mount.mkdir("docs");
    for number in 0..6u8 {
        mount.put(&format!("docs/{number}.f32"), &[f32::from(number) + 1.0, 1.0]);
        xattr::set(mount.path(format!("docs/{number}.f32")), "user.mood", [b'a' + number % 3].as_slice())
            .unwrap();
    }
    let without = command(&mount, "docs", &["--where", "mood=a or mood=b", "--json"]);
    let without: Value = serde_json::from_slice(&without.stdout).unwrap();
    let collection = &without["explain"]["collections"][0];
    assert_eq!((&collection["covered"], &collection["passing"]), (&json!(6), &json!(4)), "{without}");
    let with = explained(&mount, "docs", &json!({"like": "0.f32", "where": "mood=b"}));
    assert_eq!((&with["passing"], &with["run"]["rows"]), (&json!(2), &json!(2)), "{with}");
}
