//! The laboratory's network: what it connects, and that its faults are what they say.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::netns::{Net, Peer};
use e2e::wait::wait_until;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

const SOON: Duration = Duration::from_secs(10);
const PORT: u16 = 8420;

/// A socket belongs to the namespace of the thread that made it, and keeps it: a thread can go where a socket is
/// wanted, and come back.
async fn udp_in(net: &Net, peer: Peer) -> Result<UdpSocket> {
    net.enter(peer)?;
    let socket = UdpSocket::bind(SocketAddr::from((peer.address(), PORT))).await?;
    net.enter(Peer::Hub)?;
    Ok(socket)
}

/// Whether a datagram gets from one peer to the other within a moment.
async fn passes(from: &UdpSocket, to: &UdpSocket) -> Result<bool> {
    let mut buffer = [0; 16];
    // What an earlier attempt left must not answer for this one.
    while to.try_recv(&mut buffer).is_ok() {}
    for _ in 0..5 {
        from.send_to(b"hello", to.local_addr()?).await?;
        if tokio::time::timeout(Duration::from_millis(100), to.recv(&mut buffer)).await.is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Engines listen on port 8420 each, and everybody reaches everybody.
#[tokio::test]
async fn engines_with_the_same_port_are_reached_by_their_addresses() -> Result<()> {
    let net = Net::create(3, 1)?;
    let mut listeners = Vec::new();
    for engine in (1..=3).map(Peer::Engine) {
        net.enter(engine)?;
        listeners.push(TcpListener::bind((engine.address(), PORT)).await?);
    }
    net.enter(Peer::Hub)?;
    for engine in (1..=3).map(Peer::Engine) {
        wait_until(SOON, &format!("{engine} to be reached"), || async {
            Ok(TcpStream::connect((engine.address(), PORT)).await?)
        })
        .await?;
    }
    Ok(())
}

/// A partition that leaks, or cuts the wrong direction, would make every story about it a lie.
#[tokio::test]
async fn a_cut_drops_one_direction_and_heals() -> Result<()> {
    let net = Net::create(2, 0)?;
    net.enter(Peer::Hub)?;
    let (one, two) = (Peer::Engine(1), Peer::Engine(2));
    let (a, b, hub) = (udp_in(&net, one).await?, udp_in(&net, two).await?, udp_in(&net, Peer::Hub).await?);
    wait_until(SOON, "the network to be up", || async {
        ensure!(passes(&a, &b).await? && passes(&b, &a).await? && passes(&a, &hub).await?, "silence");
        Ok(())
    })
    .await?;

    net.cut_one_way(one, two)?;
    assert!(!passes(&a, &b).await?, "n1 to n2 is cut");
    assert!(passes(&b, &a).await?, "n2 to n1 is not");
    assert!(passes(&a, &hub).await?, "nor is n1 to the hub");
    net.cut(one, Peer::Hub)?;
    assert!(!passes(&a, &hub).await? && !passes(&hub, &a).await?, "n1 and the hub are cut");
    assert!(passes(&hub, &b).await?, "the hub and n2 are not");
    net.heal(one, two)?;
    assert!(passes(&a, &b).await?, "n1 to n2 is healed");
    assert!(!passes(&a, &hub).await?, "n1 to the hub is not");
    net.heal_all()?;
    assert!(passes(&a, &hub).await?, "all is healed");

    net.link_down(one)?;
    assert!(!passes(&b, &a).await?, "n1's link is down");
    net.link_up(one)?;
    wait_until(SOON, "n1 to come back", || async {
        ensure!(passes(&b, &a).await?, "silence");
        Ok(())
    })
    .await
}

/// A run that was killed leaves its namespaces; the next one must not trip over them, nor touch a living run's.
#[tokio::test]
async fn the_namespaces_of_dead_runs_are_removed() -> Result<()> {
    let mut dead = Command::new("true").spawn()?;
    let name = format!("mayastor-{}-0-hub", dead.id());
    dead.wait()?;
    ensure!(Command::new("ip").args(["netns", "add", &name]).status()?.success(), "ip netns add");
    let living = Net::create(0, 0)?;
    let hub = living.namespace(Peer::Hub)?;
    let second = Net::create(0, 0)?;
    let exists = |name: &str| Path::new("/run/netns").join(name).exists();
    assert!(!exists(&name), "the dead run's is gone");
    assert!(exists(&hub), "the living run's is there");
    drop((living, second));
    assert!(!exists(&hub), "and goes with its run");
    Ok(())
}
