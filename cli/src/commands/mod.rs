//! The commands, one file each: they ask the daemon, do the slow work
//! themselves, and print one report.

mod check;
mod checkpoint;
mod create;
mod diff;
mod doctor;
mod du;
mod dump;
mod expire;
mod export;
mod footprint;
mod fork;
mod gc;
mod generate;
mod init;
mod list;
mod mask;
mod mount;
mod pool;
mod promote;
mod psql;
mod quota;
mod refresh;
mod relay;
mod reset;
mod rm;
mod run;
mod schedule;
mod show;
mod snapshot;
mod start;
mod stats;
mod status;
mod stop;
mod top;
mod tree;
mod umount;
mod url;

use std::process::ExitCode;

use crate::args::{Cli, Command};
use crate::client::Client;
use crate::config::StorePaths;
use crate::error::Result;
use crate::postgres::connect::Address;
use crate::postgres::follow::Following;
use crate::postgres::server::State;
use crate::postgres::user::OsUser;
use crate::protocol::ForkRow;
use crate::report::ForkReport;
use crate::ui::Ui;

/// What every command has at hand.
pub struct Context<'a> {
    /// The store.
    pub paths: StorePaths,
    /// The terminal.
    pub ui: &'a Ui,
}

impl Context<'_> {
    /// The daemon, started if need be.
    pub fn client(&self) -> Result<Client> {
        Client::open(&self.paths)
    }

    /// A fork's report.
    pub fn report(&self, row: &ForkRow) -> ForkReport {
        let follows = self.following(row);
        ForkReport { follows, ..ForkReport::new(row, self.paths.server_log(&row.name)) }
    }

    /// How far a standby is; None if the fork is none.
    pub fn following(&self, row: &ForkRow) -> Option<Following> {
        let follow = row.meta.follow.as_ref()?;
        match (state(row), user(row)) {
            (State::Running(_), Ok(user)) => {
                Some(Following::running(follow, &address(row, &user), &self.paths.server_log(&row.name)))
            }
            _ => Some(Following::stopped(follow)),
        }
    }
}

/// Carries a command out; the exit code if it succeeds.
pub fn run(cli: &Cli, ui: &Ui) -> Result<ExitCode> {
    let context = Context { paths: StorePaths::choose(cli.global.store.as_deref())?, ui };
    match &cli.command {
        Command::Run(args) => return run::run(&context, args),
        Command::Init(args) => init::run(&context, args),
        Command::Create(args) => create::run(&context, args),
        Command::Start(args) => start::run(&context, args),
        Command::Stop(args) => stop::run(&context, args),
        Command::Restart(args) => start::restart(&context, args),
        Command::Fork(args) => fork::run(&context, args),
        Command::Pool(args) => pool::run(&context, args),
        Command::Snapshot(args) => snapshot::run(&context, args),
        Command::Snapshots(args) => snapshot::list(&context, args),
        Command::Reset(args) => reset::run(&context, args),
        Command::Refresh(args) => refresh::run(&context, args),
        Command::Promote(args) => promote::promote(&context, args),
        Command::Rename(args) => promote::rename(&context, args),
        Command::Protect(args) => promote::protect(&context, args),
        Command::Expire(args) => expire::run(&context, args),
        Command::Schedule(args) => schedule::run(&context, args),
        Command::Export(args) => export::run(&context, args),
        Command::Psql(args) => psql::run(&context, args),
        Command::Url(args) => url::run(&context, args),
        Command::List(_) => list::run(&context),
        Command::Tree(_) => tree::run(&context),
        Command::Show(args) => show::run(&context, args),
        Command::Path(args) => show::path(&context, args),
        Command::Quota(args) => quota::run(&context, args),
        Command::Rm(args) => rm::run(&context, args),
        Command::Mount(args) => mount::run(&context, args),
        Command::Umount(args) => umount::run(&context, args),
        Command::Status(_) => status::run(&context),
        Command::Diff(args) => diff::run(&context, args),
        Command::Dump(args) => dump::run(&context, args),
        Command::Dumps(args) => dump::schedules(&context, args),
        Command::Restore(args) => create::restore(&context, args),
        Command::Du(args) => du::run(&context, args),
        Command::Footprint(args) => footprint::run(&context, args),
        Command::Stats(args) => stats::run(&context, args),
        Command::Top(args) => top::run(&context, args),
        Command::Doctor(_) => doctor::run(&context),
        Command::Gc(args) => gc::run(&context, args),
        Command::Check(args) => check::check(&context, args),
        Command::Scrub(args) => check::scrub(&context, args),
        Command::Completions(args) => generate::completions(&context, args),
        Command::Man(args) => generate::man(&context, args),
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Whether a fork's server runs.
pub fn state(row: &ForkRow) -> State {
    State::of(row.pid_file.as_deref(), &row.pgdata)
}

/// The user a fork's server runs as.
fn user(row: &ForkRow) -> Result<OsUser> {
    OsUser::numbered(row.meta.uid)
}

/// How to reach a fork's server.
fn address<'a>(row: &'a ForkRow, user: &'a OsUser) -> Address<'a> {
    Address::new(&row.meta, user)
}

/// Milliseconds, for reports.
fn ms(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
