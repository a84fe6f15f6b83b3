//! The service manager's watchdog: it is told that all is well only while the loops turn.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Manager;
use crate::heartbeat::Heartbeats;
use crate::sandbox::{Role, enter_role};

/// Checks in the time after which the manager gives the process up: one that comes late, or finds
/// a loop at long work, does not matter yet.
const CHECKS: u32 = 4;

/// Tells `manager` that all is well while the loops of `heartbeats` turn, if it wants to be told.
///
/// # Errors
/// When there can be no more threads.
pub fn watch(manager: Arc<Manager>, heartbeats: Heartbeats) -> io::Result<()> {
    let Some(limit) = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero()) else {
        return Ok(());
    };
    let run = move || {
        enter_role(Role::Watchdog);
        loop {
            check(&manager, &heartbeats);
            thread::sleep(limit / CHECKS);
        }
    };
    thread::Builder::new().name("watchdog".into()).spawn(run)?;
    log::info!("watchdog: {} s", Duration::as_secs_f64(&limit));
    Ok(())
}

fn check(manager: &Manager, heartbeats: &Heartbeats) {
    let stalled = heartbeats.check();
    if stalled.is_empty() {
        manager.alive();
    } else {
        log::error!("no turn of the loop for {} in a while", stalled.join(" and "));
    }
}
