//! Scheduling of channels, interrupts, stop and reset.

use super::*;

#[test]
fn interrupt_requires_descriptor_flag() {
    let bench = Bench::new();
    bench.run(&[descriptor(OP_NOOP, 0, 0)]);
    assert_eq!(bench.engine.read(INT_STATUS), 0);
    let with_interrupt = Descriptor { flags: FLAG_INTERRUPT, ..descriptor(OP_NOOP, 0, 0) };
    bench.start(3, &[with_interrupt]);
    bench.wait(3);
    assert_eq!(bench.engine.read(INT_STATUS), 1 << 3);
}

#[test]
fn channel_error_does_not_affect_other_channels() {
    let bench = Bench::new();
    bench.enable_at(2, END + 1);
    bench.set_reg(2, CH_DOORBELL, 1);
    bench.start(1, &[descriptor(OP_COPY, 8, 1)]);
    bench.wait(1);
    bench.wait(2);
    assert_eq!(bench.reg(2, CH_STATUS), STATE_ERROR);
    assert_eq!((bench.reg(1, CH_STATUS), bench.record(1)), (STATE_RUNNING, success(1, 8)));
}

#[test]
fn long_descriptor_delays_others_by_one_slice() {
    let long = Arc::new(AtomicUsize::new(0));
    let between = Arc::new(AtomicUsize::new(0));
    let (count, most) = (long.clone(), between.clone());
    // Channel 0 writes to the sink; other accesses are those of channel 1.
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, address| {
        if address >= SINK {
            count.fetch_add(1, SeqCst);
        } else if address >= RECORDS {
            most.fetch_max(count.swap(0, SeqCst), SeqCst);
        }
    });
    let bench = Bench::with_dma(dma);
    bench.engine.set_enables(Enables::default());
    bench.start(0, &[endless(OP_FILL)]);
    let short: Vec<_> = (0..8).map(|slot| descriptor(OP_FILL, 64, slot)).collect();
    bench.start(1, &short);
    bench.engine.set_enables(BUS_MASTER);
    bench.wait(1);
    assert!(bench.is_busy(0));
    assert!(between.load(SeqCst) <= 1, "slices between two accesses of the other channel");
}

#[test]
fn registers_are_accessible_during_an_access() {
    let (started, first) = mpsc::channel();
    let (go, barrier) = mpsc::channel::<()>();
    let barrier = std::sync::Mutex::new(barrier);
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, address| {
        if address == TARGET {
            started.send(()).unwrap();
            barrier.lock().unwrap().recv().unwrap();
        }
    });
    let bench = Bench::with_dma(dma);
    bench.start(0, &[descriptor(OP_FILL, 8, 0)]);
    first.recv().unwrap();
    assert!(bench.is_busy(0));
    bench.set_reg(0, CH_DOORBELL, 1);
    bench.engine.write(INT_STATUS, 1);
    assert_eq!(bench.reg(0, CH_HEAD), 0);
    go.send(()).unwrap();
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
}

#[test]
fn panic_in_slice_stops_only_its_channel() {
    let dma = FakeDma::mapping(RING..=END)
        .with_hook(|_, address| assert_ne!(address, SOURCE, "panic of the test"));
    let bench = Bench::with_dma(dma);
    bench.run(&[descriptor(OP_CRC32C, 8, 0)]);
    bench.assert_error(ERROR_INTERNAL, 0);
    bench.start(1, &[descriptor(OP_FILL, 8, 1)]);
    bench.wait(1);
    assert_eq!(bench.record(1), success(1, 8));
}

/// Returns a bench with endless work on every channel, and a count of accesses.
fn busy_bench() -> (Bench, Arc<AtomicUsize>) {
    let accesses = Arc::new(AtomicUsize::new(0));
    let count = accesses.clone();
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, _| {
        count.fetch_add(1, SeqCst);
    });
    let bench = Bench::with_dma(dma);
    for channel in 0..CHANNELS as u32 {
        bench.start(channel, &[endless(OP_COPY)]);
    }
    eventually("accesses of the channels", || accesses.load(SeqCst) > 100);
    (bench, accesses)
}

/// Asserts that no access is made. Yields so that a worker that ignores a stop would make one.
fn assert_no_access(accesses: &AtomicUsize) {
    let before = accesses.load(SeqCst);
    for _ in 0..1000 {
        thread::yield_now();
    }
    assert_eq!(accesses.load(SeqCst), before);
}

#[test]
fn clearing_bus_master_pauses_work() {
    let (bench, accesses) = busy_bench();
    bench.engine.set_enables(Enables::default());
    assert_no_access(&accesses);
    assert!(bench.is_busy(0));
    let before = accesses.load(SeqCst);
    bench.engine.set_enables(BUS_MASTER);
    eventually("accesses after resume", || accesses.load(SeqCst) > before + 10);
    assert_eq!(bench.reg(0, CH_STATUS), STATE_RUNNING | CH_STATUS_BUSY);
}

#[test]
fn paused_work_completes_after_bus_master_is_set() {
    let bench = Bench::new();
    bench.engine.set_enables(Enables::default());
    bench.start(0, &[descriptor(OP_FILL, 8, 0)]);
    assert!(bench.is_busy(0));
    bench.engine.set_enables(BUS_MASTER);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
}

#[test]
fn disable_stops_only_its_channel() {
    let (bench, accesses) = busy_bench();
    bench.set_reg(0, CH_CONTROL, 0);
    assert_eq!((bench.reg(0, CH_STATUS), bench.reg(0, CH_HEAD)), (STATE_DISABLED, 0));
    let before = accesses.load(SeqCst);
    eventually("accesses of other channels", || accesses.load(SeqCst) > before + 10);
    for channel in 1..CHANNELS as u32 {
        bench.set_reg(channel, CH_CONTROL, 0);
    }
    assert_no_access(&accesses);
}

#[test]
fn register_and_function_reset_stop_all_work() {
    let resets: [fn(&Engine); 2] =
        [|engine| engine.write(CONTROL, CONTROL_RESET), |engine| engine.reset()];
    for reset in resets {
        let (bench, accesses) = busy_bench();
        reset(&bench.engine);
        assert_no_access(&accesses);
        for channel in 0..CHANNELS as u32 {
            assert_eq!(bench.reg(channel, CH_STATUS), STATE_DISABLED);
        }
        bench.engine.set_enables(BUS_MASTER);
        assert_eq!(bench.result(descriptor(OP_FILL, 8, 0)), success(0, 8));
    }
}

#[test]
fn invalid_doorbell_stops_descriptor_in_progress() {
    let (bench, accesses) = busy_bench();
    for channel in 0..CHANNELS as u32 {
        bench.set_reg(channel, CH_DOORBELL, ENTRIES);
        assert_eq!(bench.reg(channel, CH_ERROR), ERROR_INDEX);
    }
    assert_no_access(&accesses);
}

#[test]
fn pause_waits_for_access_in_progress() {
    let inside = Arc::new(AtomicBool::new(false));
    let seen = inside.clone();
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, _| {
        seen.store(true, SeqCst);
        thread::yield_now();
        seen.store(false, SeqCst);
    });
    let bench = Bench::with_dma(dma);
    bench.start(0, &[endless(OP_COPY)]);
    for _ in 0..1000 {
        bench.engine.pause(|| assert!(!inside.load(SeqCst)));
    }
    assert!(bench.is_busy(0));
}
