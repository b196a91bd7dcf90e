//! The threads that share the kernels' work.
//!
//! A token passes a hundred short stretches of parallel work with a few microseconds between them. Waking a sleeping thread for each would
//! cost more than the work; so a worker that has run out of it looks out for more for [`PATIENCE`], and then sleeps until it is called. The
//! caller works along. A second caller, while one is being served, does its work alone: it would gain nothing from waiting.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, OnceLock};

/// How often a worker without work looks out for some: for 30 to 100 µs, by how long the processor's pause is.
const PATIENCE: usize = 3000;

/// The lower half of a ticket of which no task can be claimed.
const CLOSED: u64 = u32::MAX as u64;

/// What workers and callers share.
struct Pool {
    workers: usize,
    /// Held by the caller that is being served.
    serving: Mutex<()>,
    /// The number of the present call, and of its next task in the lower half. Claiming a task is one compare-and-swap of both, so that who
    /// comes late claims nothing.
    ticket: AtomicU64,
    tasks: AtomicUsize,
    done: AtomicUsize,
    failed: AtomicUsize,
    /// The present call's closure, and the function that knows its type.
    closure: AtomicPtr<()>,
    entry: AtomicPtr<()>,
    sleepers: AtomicUsize,
    asleep: Mutex<()>,
    wake: Condvar,
}

/// Calls `closure`, which is an `F`, with a task's number.
///
/// # Safety
/// `closure` must point to an `F` that lives.
unsafe fn enter<F: Fn(usize) + Sync>(closure: *const (), task: usize) {
    // SAFETY: as the caller must see to.
    unsafe { (*closure.cast::<F>())(task) }
}

type Entry = unsafe fn(*const (), usize);

fn pool() -> &'static Pool {
    static POOL: OnceLock<&'static Pool> = OnceLock::new();
    POOL.get_or_init(|| {
        // As many as rayon has, so that one setting (RAYON_NUM_THREADS) serves both.
        let workers = rayon::current_num_threads().saturating_sub(1);
        let pool = Box::leak(Box::new(Pool {
            workers,
            serving: Mutex::new(()),
            ticket: AtomicU64::new(0),
            tasks: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            closure: AtomicPtr::default(),
            entry: AtomicPtr::default(),
            sleepers: AtomicUsize::new(0),
            asleep: Mutex::new(()),
            wake: Condvar::new(),
        }));
        for i in 0..workers {
            let worker = std::thread::Builder::new().name(format!("kernels-{i}"));
            worker.spawn(|| pool.work()).expect("a thread more, at the start");
        }
        pool
    })
}

impl Pool {
    /// A worker's life.
    fn work(&self) {
        let mut seen = 0;
        loop {
            let call = self.next_call(seen);
            self.help(call);
            seen = call;
        }
    }

    /// Waits for a call other than `seen`.
    fn next_call(&self, seen: u64) -> u64 {
        let call = || Some(self.ticket.load(SeqCst) >> 32).filter(|call| *call != seen);
        for _ in 0..PATIENCE {
            if let Some(call) = call() {
                return call;
            }
            std::hint::spin_loop();
        }
        let mut asleep = self.asleep.lock().expect("nobody panics holding it");
        // Said before the last look, and the caller looks for sleepers after it has spoken: one of the two sees the other.
        self.sleepers.fetch_add(1, SeqCst);
        loop {
            if let Some(call) = call() {
                self.sleepers.fetch_sub(1, SeqCst);
                return call;
            }
            asleep = self.wake.wait(asleep).expect("nobody panics holding it");
        }
    }

    /// Does tasks of `call` as long as there are any.
    fn help(&self, call: u64) {
        loop {
            let ticket = self.ticket.load(SeqCst);
            let (entry, closure) = (self.entry.load(SeqCst), self.closure.load(SeqCst));
            let task = ticket as u32 as usize;
            if ticket >> 32 != call || task >= self.tasks.load(SeqCst) {
                return;
            }
            if self.ticket.compare_exchange_weak(ticket, ticket + 1, SeqCst, SeqCst).is_err() {
                continue;
            }
            // SAFETY: the swap succeeded, so the call is still the same: what was read between is its own, its caller waits until this
            // task is done, and until then the closure lives. `entry` was made of an `Entry`, and is never null within a call.
            let done = catch_unwind(AssertUnwindSafe(|| unsafe {
                std::mem::transmute::<*mut (), Entry>(entry)(closure, task);
            }));
            if done.is_err() {
                self.failed.store(1, SeqCst);
            }
            self.done.fetch_add(1, SeqCst);
        }
    }

    fn run<F: Fn(usize) + Sync>(&self, tasks: usize, f: &F) {
        let alone = || (0..tasks).for_each(f);
        if tasks < 2 || self.workers == 0 {
            return alone();
        }
        let Ok(serving) = self.serving.try_lock() else { return alone() };
        let call = (self.ticket.load(SeqCst) >> 32).wrapping_add(1) & CLOSED;
        // From here until the ticket is the new call's nobody can claim a task, not even who looked at the last call's ticket just now.
        self.ticket.fetch_or(CLOSED, SeqCst);
        self.tasks.store(tasks, SeqCst);
        self.closure.store(std::ptr::from_ref(f).cast_mut().cast(), SeqCst);
        self.entry.store(enter::<F> as Entry as *mut (), SeqCst);
        self.done.store(0, SeqCst);
        self.ticket.store(call << 32, SeqCst);
        if self.sleepers.load(SeqCst) > 0 {
            drop(self.asleep.lock());
            self.wake.notify_all();
        }
        self.help(call);
        let mut looks = 0;
        while self.done.load(SeqCst) < tasks {
            looks += 1;
            // A worker that was interrupted may want this very processor.
            if looks > 2000 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
        let failed = self.failed.swap(0, SeqCst);
        // Let go first: a lock that a panic has poisoned would pass for a busy one for ever.
        drop(serving);
        assert!(failed == 0, "a task of the kernels panicked");
    }
}

/// Does `f(0)` to `f(tasks - 1)`, in any order, by all threads.
pub(crate) fn run(tasks: usize, f: impl Fn(usize) + Sync) {
    pool().run(tasks, &f);
}

/// `f(0)` to `f(tasks - 1)`, made by all threads.
pub(crate) fn map<T: Send>(tasks: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let slots: Vec<Mutex<Option<T>>> = (0..tasks).map(|_| Mutex::new(None)).collect();
    run(tasks, |i| *slots[i].lock().expect("one task a slot") = Some(f(i)));
    slots.into_iter().map(|slot| slot.into_inner().ok().flatten().expect("every task was done")).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[test]
    fn every_task_is_done_once_by_many_callers_and_between_naps() {
        std::thread::scope(|scope| {
            for caller in 0..3 {
                scope.spawn(move || {
                    for round in 0..3000usize {
                        let tasks = (round * 7 + caller) % 23;
                        let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                        run(tasks, |i| {
                            counts[i].fetch_add(1, SeqCst);
                        });
                        assert!(counts.iter().all(|c| c.load(SeqCst) == 1));
                        if round % 500 == 0 {
                            std::thread::sleep(std::time::Duration::from_micros(300));
                        }
                    }
                });
            }
        });
        assert_eq!(map(100, |i| map(3, |j| i + j).len()), vec![3; 100], "calls within calls");
    }

    #[test]
    fn a_panic_reaches_its_caller_and_leaves_the_threads_alive() {
        let panicked = catch_unwind(|| run(64, |i| assert_ne!(i, 40)));
        assert!(panicked.is_err());
        assert!(!pool().serving.is_poisoned());
        assert_eq!(map(64, |i| i).len(), 64);
    }
}
