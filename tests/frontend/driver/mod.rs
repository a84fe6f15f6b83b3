//! The guest's side: its memory, its rings, and the bytes of the requests and events in them.

mod events;
mod ram;
pub mod request;
mod ring;

pub use events::{EVENT_LEN, EventQueue, Fault, LONG_EVENT_LEN};
pub use ram::{PAGE, Ram};
pub use request::{Request, status};
pub use ring::{Reply, Ring, Shape, Table, flags};
