//! Plugins in other processes: Python files, and a notebook that started this program. `memory.rs` has the arrays, `channel.rs` the
//! lines, `process.rs` the processes, `plugin.rs` models and explainers on the other side.

pub mod channel;
pub mod memory;
pub mod plugin;
pub mod process;
