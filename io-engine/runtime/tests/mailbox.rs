//! Mailboxes: ordinary use on shards and tokio, and every interleaving of small cases under loom
//! (`RUSTFLAGS="--cfg loom" cargo test -p runtime --test mailbox --release`).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use runtime::mailbox::{TrySendError, mailbox};

#[cfg(not(loom))]
mod plain {
    use std::time::Duration;

    use super::{TrySendError, mailbox};
    use runtime::{Shard, ShardOptions};

    #[test]
    fn a_full_mailbox_hands_the_message_back() {
        let (sender, mut receiver) = mailbox(2);
        sender.try_send(1).unwrap();
        sender.try_send(2).unwrap();
        assert!(matches!(sender.try_send(3), Err(TrySendError::Full(3))));
        assert_eq!(receiver.try_recv(), Some(1));
        sender.try_send(3).unwrap();
        drop(receiver);
        assert!(matches!(sender.try_send(4), Err(TrySendError::Closed(4))));
    }

    #[test]
    fn a_send_waits_for_room_and_order_is_kept() {
        runtime::block_on(async {
            let (sender, mut receiver) = mailbox(3);
            let sending = runtime::spawn(async move {
                for number in 0..100 {
                    sender.send(number).await.unwrap();
                }
            });
            for number in 0..100 {
                assert_eq!(receiver.recv().await, Some(number));
            }
            assert_eq!(receiver.recv().await, None);
            sending.await.unwrap();
        });
    }

    /// The case that loses a wake if a send that gives up keeps it.
    #[test]
    fn a_woken_send_that_is_dropped_passes_its_turn_on() {
        runtime::block_on(async {
            let (sender, mut receiver) = mailbox(1);
            sender.try_send(0).unwrap();
            let (first, second) = (sender.clone(), sender.clone());
            let first = runtime::spawn(async move { first.send(1).await });
            let second = runtime::spawn(async move { second.send(2).await });
            runtime::yield_now().await;
            assert_eq!(receiver.try_recv(), Some(0));
            first.abort();
            let message = runtime::timeout(Duration::from_secs(10), receiver.recv()).await;
            assert_eq!(message, Ok(Some(2)));
            second.await.unwrap().unwrap();
        });
    }

    #[test]
    fn threads_and_shards_talk_both_ways() {
        let (requests, mut inbox) = mailbox::<(u32, runtime::mailbox::Sender<u32>)>(8);
        let shard = Shard::start(ShardOptions::default(), move || async move {
            while let Some((number, answers)) = inbox.recv().await {
                answers.send(number * 2).await.unwrap();
            }
        })
        .unwrap();
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                let requests = requests.clone();
                std::thread::spawn(move || {
                    runtime::block_on(async {
                        let (sender, mut answers) = mailbox(1);
                        for round in 0..500 {
                            let number = thread * 1000 + round;
                            requests.send((number, sender.clone())).await.unwrap();
                            assert_eq!(answers.recv().await, Some(number * 2));
                        }
                    });
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        drop(requests);
        shard.join();
    }
}

#[cfg(loom)]
mod interleavings {
    use loom::future::block_on;
    use loom::thread;

    use super::{TrySendError, mailbox};

    /// Three threads have too many interleavings to try them all; two preemptions find what is found in practice.
    #[test]
    fn every_message_of_two_senders_arrives_and_then_the_end() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let (sender, mut receiver) = mailbox(1);
            let other = sender.clone();
            let threads = [
                thread::spawn(move || block_on(sender.send(1)).unwrap()),
                thread::spawn(move || block_on(other.send(2)).unwrap()),
            ];
            let mut sum = 0;
            while let Some(number) = block_on(receiver.recv()) {
                sum += number;
            }
            assert_eq!(sum, 3);
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn a_waiting_send_is_woken_by_a_receive_or_by_the_end() {
        loom::model(|| {
            let (sender, mut receiver) = mailbox(1);
            sender.try_send(1).unwrap();
            let sending = thread::spawn(move || block_on(sender.send(2)).is_ok());
            assert_eq!(block_on(receiver.recv()), Some(1));
            drop(receiver);
            // Accepted or handed back, but not waiting for ever.
            let _ = sending.join().unwrap();
        });
    }

    #[test]
    fn a_receiver_that_goes_away_ends_a_sender_that_tries_again() {
        loom::model(|| {
            let (sender, receiver) = mailbox(1);
            let sending = thread::spawn(move || {
                let first = sender.try_send(1);
                let second = sender.try_send(2);
                assert!(!matches!(first, Err(TrySendError::Full(_))), "there is room for one");
                assert!(second.is_err(), "and for no second");
            });
            drop(receiver);
            sending.join().unwrap();
        });
    }
}
