//! The tasks of one flow: hyper starts futures of its own, and they live and die with the flow.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Where hyper, and we, put futures that go on beside the flow's own.
#[derive(Clone, Default)]
pub(crate) struct Tasks(Rc<RefCell<Vec<Task>>>);

impl Tasks {
    /// Runs `future` until it ends or the flow does.
    pub(crate) fn start(&self, future: impl Future<Output = ()> + 'static) {
        self.0.borrow_mut().push(Box::pin(future));
    }

    /// Drives `main` and all that is started beside it; ends with `main`.
    pub(crate) async fn drive<T>(self, main: impl Future<Output = T>) -> T {
        let mut main = std::pin::pin!(main);
        let mut running: FuturesUnordered<Task> = FuturesUnordered::new();
        std::future::poll_fn(move |cx: &mut Context<'_>| {
            // Tasks are only started by what is polled here, so none is left waiting when nothing new appeared.
            loop {
                if let Poll::Ready(value) = main.as_mut().poll(cx) {
                    return Poll::Ready(value);
                }
                let started = std::mem::take(&mut *self.0.borrow_mut());
                running.extend(started);
                while let Poll::Ready(Some(())) = running.poll_next_unpin(cx) {}
                if self.0.borrow().is_empty() {
                    return Poll::Pending;
                }
            }
        })
        .await
    }
}

impl<F: Future<Output = ()> + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, future: F) {
        self.start(future);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tasks_started_by_tasks_run_and_end_with_the_flow() {
        let tasks = Tasks::default();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let inner = tasks.clone();
        let first = sender.clone();
        tasks.start(async move {
            let second = first.clone();
            inner.start(async move {
                tokio::task::yield_now().await;
                second.send(2).expect("open");
            });
            first.send(1).expect("open");
            std::future::pending::<()>().await;
        });
        drop(sender);
        let seen = tasks.drive(async { (receiver.recv().await, receiver.recv().await) }).await;
        assert_eq!(seen, (Some(1), Some(2)));
        // The task that never ends went with the flow: its sender is gone.
        assert_eq!(receiver.recv().await, None);
    }
}
