//! `vexfs search`: nearest neighbours through the files of a mount.
//!
//! Nothing here opens a store: the request goes into `DIR/.vexfs/query` and the answer comes out of it, as any
//! program could do.

mod answer;
mod query;
mod request;

use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};

use super::exit::{Code, Failure, Outcome, code_of_answer};
use super::output::put;
use answer::{Answer, Style};
pub(super) use query::QueryFile;
pub(super) use request::{Options as RequestOptions, Requests};

#[derive(Args, Debug)]
#[command(group = ArgGroup::new("what").required(true))]
#[command(group = ArgGroup::new("style"))]
pub(super) struct Search {
    /// The directory whose subtree is searched
    dir: PathBuf,
    /// Like this file, or one row of it; in the same mount or outside
    #[arg(long, value_name = "FILE[#ROW]", group = "what")]
    like: Option<PathBuf>,
    /// Like the vectors in this file, each on its own; - reads stdin
    #[arg(long, value_name = "FILE", group = "what")]
    vector: Option<PathBuf>,
    /// Like this text, where an embedder is set
    #[arg(long, value_name = "TEXT", group = "what")]
    text: Option<String>,
    #[command(flatten)]
    effort: Effort,
    /// The answers as JSON lines
    #[arg(long, group = "style")]
    json: bool,
    /// One path a line
    #[arg(long, group = "style")]
    paths: bool,
    /// Paths ended by a NUL, for xargs -0
    #[arg(short = '0', group = "style")]
    nul: bool,
}

/// What is wanted, how much of it, and what it may cost.
#[derive(Args, Debug)]
#[command(group = ArgGroup::new("effort"))]
pub(super) struct Effort {
    /// Only files whose attributes are like this: 'lang=en and year>=2020'
    #[arg(long = "where", value_name = "EXPR")]
    condition: Option<String>,
    /// How many neighbours [default: 10, or the collection's limits.max_k where that is less]
    #[arg(short, value_parser = clap::value_parser!(u32).range(1..))]
    k: Option<u32>,
    /// None farther than this distance
    #[arg(long, value_name = "DISTANCE", allow_negative_numbers = true)]
    max: Option<f64>,
    /// Share of the true neighbours to find, up to 1
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true, group = "effort")]
    recall: Option<f64>,
    /// Candidates kept while the graph is walked: more find more, slower
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), group = "effort")]
    ef: Option<u32>,
    /// Compare with every vector
    #[arg(long, group = "effort")]
    exact: bool,
}

impl Effort {
    /// # Errors
    ///
    /// `Usage` for a number that means nothing.
    pub(super) fn check(&self) -> Result<(), Failure> {
        if self.max.is_some_and(|max| !max.is_finite()) {
            return Err(Failure::new(Code::Usage, "--max: want a finite number"));
        }
        // Written so that NaN is refused.
        if self.recall.is_some_and(|recall| !(recall > 0.0 && recall <= 1.0)) {
            return Err(Failure::new(Code::Usage, "--recall: want a number above 0 and at most 1"));
        }
        Ok(())
    }

    /// The same in a request.
    pub(super) fn options(&self) -> RequestOptions {
        let exact = self.exact.then_some(true);
        RequestOptions {
            k: self.k,
            ef: self.ef,
            recall: self.recall,
            exact,
            max: self.max,
            condition: self.condition.clone(),
            explain: None,
        }
    }
}

impl Search {
    pub(super) fn run(&self) -> Outcome {
        self.effort.check()?;
        let mut query = QueryFile::open(&self.dir)?;
        let requests = self.requests(query.dir())?;
        let mut found = false;
        for number in 0..requests.len() {
            let line = query.ask(&requests.line(number)?)?;
            let answer = Answer::parse(&line)?;
            if let Some(error) = &answer.error {
                return Err(Failure::new(code_of_answer(&error.code), error.message.clone()));
            }
            let hits = answer.hits.as_deref().unwrap_or_default();
            found |= !hits.is_empty();
            if !answer.complete.unwrap_or(true) {
                super::say("the answer is not complete: not every vector could be compared in time");
            }
            if requests.len() > 1 && self.style() == Style::Table {
                put(format!("query {number}\n").as_bytes())?;
            }
            put(&answer::render(&line, hits, self.style(), &self.dir))?;
        }
        Ok(if found { Code::Ok } else { Code::NoResult })
    }

    fn style(&self) -> Style {
        match (self.json, self.paths, self.nul) {
            (true, _, _) => Style::Json,
            (_, true, _) => Style::Paths,
            (_, _, true) => Style::PathsNul,
            (false, false, false) => Style::Table,
        }
    }

    fn requests(&self, dir: &Path) -> Result<Requests, Failure> {
        let options = self.effort.options();
        match (&self.like, &self.vector, &self.text) {
            (Some(like), _, _) => Requests::like(like, dir, options),
            (_, Some(file), _) => Requests::vectors(file, options),
            (_, _, Some(text)) => Ok(Requests::text(text, options)),
            (None, None, None) => Err(Failure::new(Code::Usage, "one of --like, --vector, --text is needed")),
        }
    }
}
