//! Resets the service manager's watchdog timer while the event loops run.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Manager;
use crate::heartbeat::Heartbeats;
use crate::sandbox::{Role, enter_role};

/// Number of checks within the timeout of the manager. A late check, or one during a long
/// operation of a loop, does not yet exceed it.
const CHECKS: u32 = 4;

/// Starts a thread that resets the watchdog timer of `manager` while all loops in `heartbeats` run,
/// if the manager requests it (`WATCHDOG_USEC`).
///
/// # Errors
/// When the thread cannot be started.
pub fn start_watchdog(manager: Arc<Manager>, heartbeats: Heartbeats) -> io::Result<()> {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero()) else {
        return Ok(());
    };
    thread::Builder::new().name("watchdog".into()).spawn(move || {
        enter_role(Role::Watchdog);
        loop {
            check(&manager, &heartbeats);
            thread::sleep(timeout / CHECKS);
        }
    })?;
    log::info!("watchdog timeout: {} s", Duration::as_secs_f64(&timeout));
    Ok(())
}

fn check(manager: &Manager, heartbeats: &Heartbeats) {
    let stalled = heartbeats.check();
    if stalled.is_empty() {
        manager.keep_alive();
    } else {
        log::error!("no heartbeat from the event loop for {}", stalled.join(" and "));
    }
}
