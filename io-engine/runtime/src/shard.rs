//! Shards: threads that run tasks on a ring of their own.
//!
//! One turn of the loop: take what other threads have woken, poll a bounded number of ready tasks, fire the timers that
//! are due, and let the driver submit and reap; asleep in the kernel when nothing is ready.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::clock::Instant;
use crate::context::{self, Context};
use crate::driver::Driver;
use crate::driver::uring::{Uring, Wait};
use crate::executor::{Executor, Remote, poll_main};
use crate::timer::Timers;

/// Tasks polled before the ring is looked at again: enough to share its cost, too few to keep completions waiting.
const TASKS_PER_TURN: usize = 256;

/// How to start a shard.
#[derive(Clone, Debug)]
pub struct ShardOptions {
    /// Name of its thread.
    pub name: String,
    /// The core to stay on; none leaves the choice to the kernel.
    pub cpu: Option<usize>,
    /// How long to poll for completions before sleeping in the kernel, while operations are in flight. Worth it only
    /// where a core is free for every shard; an idle shard sleeps in any case.
    pub spin: Duration,
    /// Entries of the submission queue; a full queue is submitted and used again.
    pub ring_entries: u32,
}

impl Default for ShardOptions {
    fn default() -> Self {
        Self { name: "shard".to_owned(), cpu: None, spin: Duration::ZERO, ring_entries: 256 }
    }
}

/// A thread with an executor and a ring; see [`Shard::start`].
#[derive(Debug)]
pub struct Shard;

impl Shard {
    /// Starts a shard that runs the future made by `init` on it, and ends, with all its tasks, when that ends.
    ///
    /// A panic in a task of the shard ends the process: an invariant is broken, and what is durable is on disk.
    ///
    /// # Errors
    /// Where the kernel refuses the ring, the error names the fix. `init` has not been called then.
    pub fn start<I, F>(options: ShardOptions, init: I) -> io::Result<ShardHandle>
    where
        I: FnOnce() -> F + Send + 'static,
        F: Future<Output = ()>,
    {
        let (report, is_started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(options.name.clone()).spawn(move || {
            let context = match set_up(&options) {
                Ok(context) => context,
                Err(error) => {
                    let _ = report.send(Err(error));
                    return;
                }
            };
            let _ = report.send(Ok(()));
            run(&context, async { init().await }, OnPanic::Abort);
        })?;
        is_started.recv().expect("the thread reports before it does anything else")?;
        Ok(ShardHandle { thread })
    }
}

/// A running shard. Dropping the handle leaves it running.
#[derive(Debug)]
pub struct ShardHandle {
    thread: thread::JoinHandle<()>,
}

impl ShardHandle {
    /// Waits, blocking this thread, until the shard has ended.
    pub fn join(self) {
        self.thread.join().expect("a panic in a shard ends the process");
    }

    /// Whether the shard has ended.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

/// Runs `future` on a shard of its own on this thread, for tests and small tools. A panic in a task unwinds from here.
///
/// # Panics
/// If the kernel refuses the ring; the message names the fix.
pub fn block_on<F: Future>(future: F) -> F::Output {
    let context = set_up(&ShardOptions::default()).unwrap_or_else(|error| panic!("{error}"));
    run(&context, future, OnPanic::Unwind)
}

fn set_up(options: &ShardOptions) -> io::Result<Rc<Context>> {
    if let Some(cpu) = options.cpu {
        if cpu >= CpuSet::MAX_CPU {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("there is no CPU {cpu}")));
        }
        let mut cpus = CpuSet::new();
        cpus.set(cpu);
        sched_setaffinity(None, &cpus).map_err(|error| {
            io::Error::new(error.kind(), format!("stay on CPU {cpu}: {error}: is it in the cgroup's cpuset?"))
        })?;
    }
    let remote = Remote::new(Some(eventfd(0, EventfdFlags::CLOEXEC)?));
    let uring = Uring::new(options.ring_entries, options.spin, Arc::clone(&remote))?;
    Ok(Rc::new(Context {
        executor: Executor::new(remote),
        timers: Timers::default(),
        driver: Driver::Uring(uring),
    }))
}

/// What a panic in a task does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnPanic {
    /// An invariant is broken: the process ends before any other task runs or is dropped.
    Abort,
    /// The caller is a test.
    Unwind,
}

fn run<F: Future>(context: &Rc<Context>, future: F, on_panic: OnPanic) -> F::Output {
    let _entered = context::enter(context);
    // Dropped in reverse order: the future, then all tasks, then the kernel's last operations.
    let _ending = Ending { context, on_panic };
    run_until(context, future)
}

/// Ends a shard: see [`run`].
struct Ending<'a> {
    context: &'a Context,
    on_panic: OnPanic,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        if self.on_panic == OnPanic::Abort && thread::panicking() {
            // The panic hook has told what and where.
            std::process::abort();
        }
        self.context.executor.clear(None);
        if let Driver::Uring(uring) = &self.context.driver {
            uring.drain();
        }
    }
}

fn run_until<F: Future>(context: &Context, future: F) -> F::Output {
    let Driver::Uring(uring) = &context.driver else { unreachable!("simulations have a loop of their own") };
    let executor = &context.executor;
    let mut future = pin!(future);
    let main = executor.add_main();
    let waker = Waker::from(Arc::clone(&main));
    loop {
        executor.adopt_remote();
        for _ in 0..TASKS_PER_TURN {
            let Some(task) = executor.next() else { break };
            if !task.is_main() {
                executor.poll(&task);
            } else if let Poll::Ready(output) = poll_main(&main, &waker, future.as_mut()) {
                return output;
            }
        }
        let deadline = context.timers.next_deadline();
        if deadline.is_some() {
            context.timers.fire(Instant::of_kernel());
        }
        uring.arm_bell();
        if executor.ready_len() == 0 && executor.remote().prepare_sleep() {
            uring.turn(Wait::Until(context.timers.next_deadline()));
            executor.remote().end_sleep();
        } else {
            uring.turn(Wait::Not);
        }
    }
}
