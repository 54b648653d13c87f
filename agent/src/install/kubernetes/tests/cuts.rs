//! Power cuts: each step is dropped at each point where it waits, and the next start goes on.

use std::future::poll_fn;
use std::task::Poll;

use super::*;

/// What is left of the time until the power goes: so many polls.
struct Fuse(usize);

impl Fuse {
    /// Runs a step until it ends, or until the power goes.
    async fn run<T>(&mut self, mut step: Later<T>) -> Option<T> {
        poll_fn(|cx| {
            if self.0 == 0 {
                return Poll::Ready(None);
            }
            self.0 -= 1;
            match step.as_mut().poll(cx) {
                Poll::Ready(value) => Poll::Ready(Some(value)),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }
}

/// An update by what the installer says of itself, as after any start; `None` if the power went.
async fn go_on(world: &World, release: &(Release, String), fuse: &mut Fuse) -> Option<()> {
    let standing = fuse.run(world.workload().standing()).await?.expect("a standing");
    let new = release.0.reference();
    if standing.committed == *new {
        return Some(());
    }
    if standing.running != *new {
        let place = world.workload().place(&release.0).expect("a place");
        fs::write(place.path, &release.1).expect("the payload is written");
        fuse.run(world.workload().stage(release.0.clone())).await?.expect("staged");
        fuse.run(world.workload().activate()).await?.expect("activated");
    }
    fuse.run(world.workload().healthy()).await?.expect("healthy");
    fuse.run(world.workload().commit()).await?.expect("committed");
    Some(())
}

#[test]
fn a_power_cut_anywhere_in_an_update_leads_to_the_new_release_all_the_same() {
    with_world(async |world| {
        let manifest = |n: u64| web(&format!("good/web:{n}")) + &map(&format!("settings-{n}"), "x");
        world.update(&release(1, &manifest(1))).await;
        for n in 2.. {
            let release = release(n, &manifest(n));
            let whole = go_on(&world, &release, &mut Fuse(n as usize - 2)).await.is_some();
            go_on(&world, &release, &mut Fuse(usize::MAX)).await.expect("no more cuts");
            let id = release.0.id.to_string();
            assert_eq!(world.standing().await, (id.clone(), id), "after {n}");
            let image = &world.deployment().await["spec"]["template"]["spec"]["containers"][0]["image"];
            assert_eq!(*image, format!("good/web:{n}"));
            assert!(world.get("v1", "ConfigMap", &format!("settings-{n}")).await.is_some(), "after {n}");
            assert_eq!(world.get("v1", "ConfigMap", &format!("settings-{}", n - 1)).await, None, "after {n}");
            assert!(world.workload().records.trial().expect("readable").is_none(), "after {n}");
            if whole {
                assert!(n > 10, "an update is made of more steps than {n}");
                return;
            }
        }
    });
}

#[test]
fn a_power_cut_anywhere_on_the_way_back_leads_back_all_the_same() {
    with_world(async |world| {
        world.update(&release(1, &(web("good/web:1") + &map("settings", "one")))).await;
        for n in 2.. {
            let bad = release(n, &(web("bad/web:2") + &map("settings", "two") + &map("more", "x")));
            world.stage(&bad).await.expect("staged");
            world.workload().activate().await.expect("activated");
            let whole = Fuse(n as usize - 2).run(world.workload().go_back()).await.is_some();
            if world.standing().await.0 != "web-1" {
                // The power went before the first record: the trial is still on.
                world.workload().go_back().await.expect("back");
            }
            assert_eq!(world.standing().await, ("web-1".into(), "web-1".into()), "after {n}");
            let image = &world.deployment().await["spec"]["template"]["spec"]["containers"][0]["image"];
            assert_eq!(*image, "good/web:1", "after {n}");
            let settings = world.get("v1", "ConfigMap", "settings").await.expect("there before");
            assert_eq!(settings["data"]["key"], "one", "after {n}");
            assert_eq!(world.get("v1", "ConfigMap", "more").await, None, "after {n}");
            if whole {
                assert!(n > 5, "going back is made of more steps than {n}");
                return;
            }
        }
    });
}
