//! Peers that misbehave, vanish, or do nothing at all.

use std::rc::Rc;
use std::time::Duration;

use nvme::Status;
use nvme::command::admin::AdminCommand;
use nvme::command::nvm::{BlockRange, NvmCommand};
use nvme::session::HostSession;
use nvme::session::host::HostConfig;
use runtime::{IoBuf, IoBytes, TcpStream};

use super::super::testing::{
    FakeReplica, Host, NAMESPACE, bytes, everywhere, nqn, simulated, subsystem, target, until,
};
use crate::block::fault::{Effect, Fault, FaultOp};
use crate::initiator::queue::Data;
use crate::target::{Target, TargetOptions};

/// Receives until the peer closes; everything it said.
async fn hear_out(stream: &TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let mut buf = IoBuf::zeroed(4096);
    loop {
        let (received, back) = stream.recv(buf).await;
        buf = back;
        match received {
            Ok(count) if count > 0 => heard.extend_from_slice(&buf[..count]),
            _ => return heard,
        }
    }
}

#[test]
fn garbage_is_answered_with_a_terminate_request_and_the_end_of_the_connection() {
    everywhere(async |address| {
        let target = target(address).await;
        for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xFF; 300], &[4; 72]] {
            let stream = TcpStream::connect(target.address()).await.expect("it listens");
            stream.send(vec![IoBytes::from_slice(garbage)]).await.expect("sent");
            let heard = hear_out(&stream).await;
            assert_eq!(heard.first(), Some(&3), "C2HTermReq");
        }
        until("the connections are gone", || target.usage().connections == 0).await;
    });
}

#[test]
fn a_connection_that_ends_within_a_pdu_leaves_nothing_behind() {
    everywhere(async |address| {
        let target = target(address).await;
        for len in [1, 7, 8, 9, 127] {
            let stream = TcpStream::connect(target.address()).await.expect("it listens");
            let hello = HostSession::new(HostConfig::default()).outbox().drain_to_vec(|_| &[]);
            stream.send(vec![IoBytes::from_slice(&hello[..len])]).await.expect("sent");
            drop(stream);
        }
        until("the connections are gone", || target.usage().connections == 0).await;
    });
}

/// A port scanner, or a host that died while connecting, does not hold a connection for ever.
#[test]
fn a_connection_that_becomes_no_queue_is_closed() {
    simulated(async |address| {
        let target = target(address).await;
        let stream = TcpStream::connect(target.address()).await.expect("it listens");
        let begun = runtime::now();
        assert!(hear_out(&stream).await.is_empty());
        assert!(runtime::now().duration_since(begun) <= Duration::from_secs(30));
    });
}

#[test]
fn two_hundred_idle_hosts_are_served() {
    everywhere(async |address| {
        let target = target(address).await;
        target
            .add({
                let mut wide = subsystem("v", &FakeReplica::new());
                wide.cntlids = 1..=1000;
                wide
            })
            .expect("new");
        let mut hosts = Vec::new();
        for index in 0..200 {
            let host = Host::new(target.address(), &format!("host-{index}"));
            hosts.push(host.associate(&nqn("v")).await.0);
        }
        assert_eq!((target.usage().associations, target.usage().connections), (200, 200));
        let keep_alive = AdminCommand::KeepAlive.encode(nvme::Nsid(0));
        for admin in &hosts {
            assert_eq!(admin.run(keep_alive, Data::None).await.0.status, Status::SUCCESS);
        }
        for admin in hosts {
            admin.queue.close();
        }
        until("all are gone", || target.usage().connections == 0 && target.usage().associations == 0).await;
    });
}

#[test]
fn too_many_connections_are_turned_away() {
    everywhere(async |address| {
        let options = TargetOptions { connections_max: 2, ..TargetOptions::default() };
        let target = Target::<FakeReplica>::bind(address, options).await.expect("the port is free");
        let first = TcpStream::connect(target.address()).await.expect("it listens");
        let second = TcpStream::connect(target.address()).await.expect("it listens");
        until("both are counted", || target.usage().connections == 2).await;
        // Reset while connecting or right after.
        if let Ok(third) = TcpStream::connect(target.address()).await {
            assert!(hear_out(&third).await.is_empty());
        }
        assert_eq!(target.usage().connections, 2);
        drop((first, second));
        until("the others are gone", || target.usage().connections == 0).await;
    });
}

/// Connections broken while data is on its way, in every direction: no buffer, command or association stays.
#[test]
fn connections_that_break_mid_transfer_leak_nothing() {
    everywhere(async |address| {
        let target = target(address).await;
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        for round in 0..8_u64 {
            let host = Host::new(target.address(), &format!("host-{round}"));
            let (admin, io) = host.attach(&nqn("v")).await;
            let range = BlockRange { lba: 0, blocks: 2048 };
            let mut running = Vec::new();
            for index in 0..6 {
                let io = io.clone();
                running.push(runtime::spawn(async move {
                    if index % 2 == 0 {
                        let write = NvmCommand::Write { range, fua: false }.encode(NAMESPACE);
                        io.try_run(write, bytes(&vec![7; 1 << 20])).await
                    } else {
                        let read = NvmCommand::Read { range, fua: false }.encode(NAMESPACE);
                        io.try_run(read, Data::Read(IoBuf::zeroed(1 << 20))).await
                    }
                }));
            }
            for _ in 0..round * 7 {
                runtime::yield_now().await;
            }
            io.queue.close();
            admin.queue.close();
            for task in running {
                task.await.expect("not aborted");
            }
        }
        until("nothing is left", || {
            let usage = target.usage();
            (usage.connections, usage.associations, usage.data_bytes) == (0, 0, 0)
        })
        .await;
        // Nobody but the target's subsystem and we hold the replica.
        until("the replica is released", || Rc::strong_count(&replica.report) == 2).await;
    });
}

/// Data beyond the budget waits for memory and is then asked for.
#[test]
fn commands_beyond_the_memory_budget_wait_and_complete() {
    everywhere(async |address| {
        let options = TargetOptions { data_bytes_max: 1 << 20, ..TargetOptions::default() };
        let target = Target::<FakeReplica>::bind(address, options).await.expect("the port is free");
        let replica = FakeReplica::new();
        target.add(subsystem("v", &replica)).expect("new");
        let (_, io) = Host::new(target.address(), "host").attach(&nqn("v")).await;
        let held = replica.faults().add(Fault::new(FaultOp::Write, Effect::Hold));
        let range = BlockRange { lba: 0, blocks: 1024 };
        let writes: Vec<_> = (0..6)
            .map(|_| {
                let io = io.clone();
                runtime::spawn(async move {
                    let write = NvmCommand::Write { range, fua: false }.encode(NAMESPACE);
                    io.run(write, bytes(&vec![7; 512 << 10])).await.0.status
                })
            })
            .collect();
        until("two fill the budget", || replica.faults().held() == 2).await;
        runtime::sleep(Duration::from_millis(20)).await;
        assert_eq!((replica.faults().held(), target.usage().data_bytes), (2, 1 << 20));
        replica.faults().remove(held);
        for write in writes {
            assert_eq!(write.await.expect("not aborted"), Status::SUCCESS);
        }
        until("the memory is free again", || target.usage().data_bytes == 0).await;
    });
}

/// A target that is dropped closes its port and its connections.
#[test]
fn a_dropped_target_is_gone() {
    everywhere(async |address| {
        let target = target(address).await;
        let bound = target.address();
        target.add(subsystem("v", &FakeReplica::new())).expect("new");
        let (admin, _) = Host::new(bound, "host").associate(&nqn("v")).await;
        drop(target);
        until("the host notices", || admin.queue.is_closed()).await;
        let again = Target::<FakeReplica>::bind(bound, TargetOptions::default()).await;
        assert_eq!(again.expect("the port is free").address(), bound);
    });
}
