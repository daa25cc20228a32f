//! `pgcowfs rm`

use std::time::Duration;

use super::{Context, state, user};
use crate::args::{Place, Rm};
use crate::client::Client;
use crate::error::{Error, Kind, Result};
use crate::postgres::follow::Slot;
use crate::postgres::server::{self, State, StopHow};
use crate::postgres::tree::DirTree;
use crate::protocol::{ForkRow, Request, SnapshotRow};
use crate::report::RmReport;

/// Removes forks and snapshots: all of them, or none if one of them cannot be.
pub fn run(context: &Context, args: &Rm) -> Result<()> {
    let mut client = context.client()?;
    let (mut forks, mut snapshots) = (Vec::new(), Vec::new());
    for (number, place) in args.places.iter().enumerate() {
        if args.places[..number].contains(place) {
            return Err(Error::new(Kind::Usage, format!("{:?} is named twice", place.to_string())));
        }
        match &place.label {
            None => forks.push(removable(&mut client, &place.fork, args.force)?),
            Some(label) => {
                find_snapshot(&mut client, place, label)?;
                snapshots.push((place.fork.clone(), label.clone()));
            }
        }
    }
    // A fork takes its snapshots along.
    for (fork, label) in snapshots {
        client.call::<()>(&Request::RemoveSnapshot { fork, label })?;
    }
    for row in &forks {
        if let State::Running(pid) = state(row) {
            server::stop(&row.name, &row.pgdata, pid, StopHow::Immediate, Duration::from_secs(60))?;
        }
        let slot = slot(row);
        client.call::<()>(&Request::Remove { fork: row.name.clone() })?;
        match slot {
            Ok(Some(slot)) => slot.drop().iter().for_each(|left| context.ui.warn(left)),
            Ok(None) => {}
            Err(error) => context.ui.warn(format!("cannot tell whether {} had a slot: {error}", row.name)),
        }
    }
    context.ui.print(&RmReport { removed: args.places.iter().map(Place::to_string).collect() })
}

/// The slot of a follower.
fn slot(row: &ForkRow) -> Result<Option<Slot>> {
    let Some(follow) = &row.meta.follow else { return Ok(None) };
    let user = user(row)?;
    user.run(|| Slot::of(follow, &DirTree(row.pgdata.clone()), &user))
}

fn removable(client: &mut Client, fork: &str, force: bool) -> Result<ForkRow> {
    let row = client.info(fork)?;
    row.meta.refuse_protected(fork)?;
    if let (State::Running(pid), false) = (state(&row), force) {
        return Err(Error::new(Kind::State, format!("fork {fork:?} is running"))
            .cause(format!("process {pid} serves it"))
            .hint(format!("stop it first, or let rm do so: pgcowfs rm --force {fork}")));
    }
    Ok(row)
}

fn find_snapshot(client: &mut Client, place: &Place, label: &str) -> Result<()> {
    pgcowfs::check_label(label)?;
    client.info(&place.fork)?.meta.refuse_protected(&place.fork)?;
    let there: Vec<SnapshotRow> = client.call(&Request::Snapshots { fork: Some(place.fork.clone()) })?;
    match there.iter().any(|snapshot| snapshot.label == label) {
        true => Ok(()),
        false => Err(pgcowfs::Error::NoSuchSnapshot(place.fork.clone(), label.to_string()).into()),
    }
}
