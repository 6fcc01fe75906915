//! The end of a process with checks, and the view of them that outlives it.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_restart_continues_with_the_kept_view_and_repeats_no_notice() {
    let third = "10.1.0.3";
    let text =
        virtual_server("delay_loop 10\nretry 1\ndelay_before_retry 1\nwarmup 0\nquorum 2", [RS1, RS2, third]);
    let health = Health::start(&text, MANY).await;
    health.world.set(RS1, Server::Refuses);
    health.world.set(third, Server::Refuses);
    sleep(seconds(15.0)).await;
    health.world.emitted("192.0.2.1 80 has no quorum");
    let kept = health.world.kept.lock().unwrap().clone();
    let before = health.report();

    // The file that the next process reads contains a new real server and an edited check.
    let (first_two, last) = text.rsplit_once("TCP_CHECK { }").unwrap();
    let edited = format!("{first_two}TCP_CHECK {{ connect_port 81 }}{last}");
    let more =
        edited.replacen("real_server", "real_server 10.1.0.4 80 { TCP_CHECK { alpha } }\nreal_server", 1);
    let next = Health::resume(&more, MANY, kept).await;
    let expected =
        [("10.1.0.4:80", false), ("10.1.0.1:80", false), ("10.1.0.2:80", true), ("10.1.0.3:80", false)];
    let report = next.report();
    let servers = &report.virtual_servers[0].real_servers;
    let seen = servers.iter().map(|server| (server.endpoint.as_str(), server.is_up)).collect::<Vec<_>>();
    assert_eq!(seen, expected);
    assert!(!before.virtual_servers[0].is_well && !next.report().virtual_servers[0].is_well);
    let states = next.report().virtual_servers[0]
        .real_servers
        .iter()
        .map(|one| one.checks[0].state)
        .collect::<Vec<_>>();
    assert_eq!(states, [CheckState::AssumedDown, CheckState::Down, CheckState::Up, CheckState::AssumedDown]);
    assert!(next.world.emitted.lock().unwrap().is_empty(), "{:?}", next.world.emitted.lock().unwrap());
    // One failure of a server that is up is not the first of a new check.
    for server in [RS1, third, "10.1.0.4"] {
        next.world.set(server, Server::Refuses);
    }
    next.world.set(RS2, Server::Slow(seconds(0.1)));
    sleep(seconds(5.0)).await;
    let emitted = next.world.emitted.lock().unwrap().clone();
    assert!(
        !emitted.is_empty() && emitted.iter().all(|(line, _)| line.starts_with("10.1.0.4:80")),
        "{emitted:?}"
    );
    next.world.set(RS1, Server::Passes);
    sleep(seconds(11.0)).await;
    next.world.emitted("10.1.0.1:80 of 192.0.2.1 80 is up");
    next.world.emitted("192.0.2.1 80 has its quorum");
}

#[tokio::test(start_paused = true)]
async fn while_an_earlier_process_runs_no_check_runs_no_notice_is_sent_and_no_view_is_kept() {
    for begins in [true, false] {
        let health = Health::waiting(View::default());
        health.load(&virtual_server("delay_loop 5\nomega\nalpha\nwarmup 0", [RS1])).await.unwrap();
        sleep(seconds(60.0)).await;
        if begins {
            health.begin(MANY);
            sleep(seconds(1.0)).await;
            health.world.emitted("10.1.0.1:80 of 192.0.2.1 80 is up");
            assert!(!health.world.probed(RS1).is_empty());
            assert!(!health.world.kept.lock().unwrap().virtual_servers.is_empty());
        } else {
            health.manager.send(Message::Stop).ok().unwrap();
            sleep(seconds(1.0)).await;
            assert!(health.world.probed(RS1).is_empty());
            assert!(health.world.emitted.lock().unwrap().is_empty());
            assert!(health.world.kept.lock().unwrap().virtual_servers.is_empty());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stop_sends_notices_with_omega_and_ends_all_probes() {
    let health = Health::start(&virtual_server("delay_loop 5\nomega", [RS1]), MANY).await;
    sleep(seconds(10.0)).await;
    health.manager.send(Message::Stop).ok().unwrap();
    sleep(seconds(0.1)).await;
    health.world.emitted("10.1.0.1:80 of 192.0.2.1 80 is down");
    health.world.emitted("192.0.2.1 80 has no quorum");
    health.world.probed(RS1);
    sleep(seconds(60.0)).await;
    assert_eq!(health.world.probed(RS1).len(), 0);
}
