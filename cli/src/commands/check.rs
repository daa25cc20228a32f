//! `pgcowfs check` and `pgcowfs scrub`

use std::time::Instant;

use pgcowfs::forks::{check_closed, repair_closed};

use super::Context;
use crate::args::{Check, Scrub};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::protocol::{InspectSpec, Inspected, Progress, Request};
use crate::report::{CheckReport, RestoreReport};

/// Checks the records; repairs what can be counted.
pub fn check(context: &Context, args: &Check) -> Result<()> {
    if !args.repair {
        return inspect(context, &InspectSpec::default());
    }
    let paths = &context.paths;
    paths.check()?;
    if Client::connect(paths)?.is_some() {
        return Err(Error::new(Kind::State, "a daemon serves the store, and has its counts in memory")
            .hint("stop the servers and end it first: pgcowfs umount --stop"));
    }
    let started = Instant::now();
    let repaired = repair_closed(&paths.dir)?;
    let (report, progress) = check_closed(&paths.dir, None, &mut |_| true)?;
    let found = Inspected::new(report, &progress);
    finish(context, CheckReport::new(found, started.elapsed(), Some(repaired)))
}

/// Reads every page.
pub fn scrub(context: &Context, args: &Scrub) -> Result<()> {
    if let (Some(fork), Some((path, block))) = (&args.fork, &args.restore) {
        let request = Request::Restore { fork: fork.clone(), path: path.clone(), block: *block };
        let what: String = context.client()?.call(&request)?;
        let report =
            RestoreReport { fork: fork.clone(), path: path.clone(), block: *block, restored_from: what };
        return context.ui.print(&report);
    }
    let spec = InspectSpec {
        scrub: true,
        fork: args.fork.clone(),
        seal: args.seal,
        pg: args.pg,
        bytes_per_second: args.rate,
    };
    inspect(context, &spec)
}

fn inspect(context: &Context, spec: &InspectSpec) -> Result<()> {
    let started = Instant::now();
    let label = if spec.scrub { "scrubbing" } else { "checking" };
    let mut bar = None;
    let mut tell = |bytes: u64, total: u64| {
        let bar = bar.get_or_insert_with(|| context.ui.progress(label, total));
        bar.add(bytes);
    };
    let found = match context.client() {
        Ok(mut client) => {
            if let Some(fork) = &spec.fork {
                client.info(fork)?;
            }
            client.call_long(&Request::Inspect(spec.clone()), &mut |p: Progress| tell(p.bytes, p.total))?
        }
        Err(error) => closed(context, spec, error, &mut tell)?,
    };
    if let Some(bar) = bar {
        bar.finish();
    }
    finish(context, CheckReport::new(found, started.elapsed(), None))
}

/// The same without a daemon: none can open the store.
fn closed(
    context: &Context,
    spec: &InspectSpec,
    error: Error,
    tell: &mut dyn FnMut(u64, u64),
) -> Result<Inspected> {
    // The wrong directory is no damaged store.
    if !context.paths.dir.join("map").is_dir() || spec.seal {
        return Err(error);
    }
    let mut before = 0;
    let mut tell = |now: &pgcowfs::check::scrub::Progress| {
        tell(now.bytes - before, now.total);
        before = now.bytes;
        true
    };
    let options = spec.scrub.then(|| spec.options());
    match check_closed(&context.paths.dir, options.as_ref(), &mut tell) {
        Ok((report, progress)) => {
            context.ui.warn(format!("no daemon can serve the store: {error}"));
            Ok(Inspected::new(report, &progress))
        }
        Err(pgcowfs::Error::StoreBusy { .. }) => Err(error),
        Err(other) => Err(other.into()),
    }
}

fn finish(context: &Context, report: CheckReport) -> Result<()> {
    context.ui.print(&report)?;
    let repairable = report.found.findings.iter().filter(|f| f.repairable).count();
    match report.found.findings.len() {
        0 => Ok(()),
        n => {
            let things = if n == 1 { "1 thing is".to_string() } else { format!("{n} things are") };
            let error = Error::new(Kind::Storage, format!("{things} wrong in the store"));
            Err(match repairable {
                0 => error.hint("each finding says what to do next; docs/DAMAGE.md tells more"),
                _ => error.hint(format!(
                    "`pgcowfs umount --stop && pgcowfs check --repair` puts {repairable} of them right"
                )),
            })
        }
    }
}
