//! Paged keys and values: whatever is appended, forked, truncated, shared and dropped, a sequence goes on as a cold prefill of its tokens
//! (I2), leaves others as they were (I3), and does not notice who shares its pass (I4).

use hearken_models::checkpoint::{Checkpoint, Options};
use hearken_models::decoder::{Decoder, Share};
use hearken_models::kv::{BLOCK, KvType, Pool, Salt, Sequence, Unit};
use hearken_models::{Device, Error, Tensor};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;

/// One thing done to one of the sequences that are alive, by its place modulo their number.
#[derive(Debug, Clone)]
enum Op {
    /// All of these get that many new tokens, in one pass.
    Append(Vec<(usize, usize)>),
    Fork(usize),
    Truncate(usize, f64),
    Drop(usize),
    /// Its full blocks are published, and a new sequence goes on from what the index knows of its tokens.
    Adopt(usize),
}

fn program(length: usize, longest: usize) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => prop::collection::vec((0usize..8, 1..longest), 1..4).prop_map(Op::Append),
        2 => (0usize..8).prop_map(Op::Fork),
        2 => (0usize..8, 0.0..1.0f64).prop_map(|(i, part)| Op::Truncate(i, part)),
        1 => (0usize..8).prop_map(Op::Drop),
        1 => (0usize..8).prop_map(Op::Adopt),
    ];
    prop::collection::vec(op, 1..length)
}

struct Alive {
    sequence: Sequence,
    ids: Vec<u32>,
}

/// Puts tokens through and gives the logits behind each share's last one.
fn pass(decoder: &Decoder, shares: &mut [(&mut Sequence, &[u32])]) -> Vec<Vec<f32>> {
    let ids: Vec<u32> = shares.iter().flat_map(|(_, ids)| ids.iter().copied()).collect();
    let mut last = Vec::new();
    let mut at = 0;
    let mut parts = Vec::new();
    for (sequence, ids) in shares.iter_mut() {
        at += ids.len();
        last.push(at as u32 - 1);
        parts.push(Share { sequence, tokens: ids.len() });
    }
    let hidden = decoder.forward(&decoder.embed(&ids).unwrap(), &mut parts).unwrap();
    let last = hidden.index_select(&Tensor::new(last, hidden.device()).unwrap(), 0).unwrap();
    decoder.logits(&last).unwrap().to_vec2().unwrap()
}

/// How far two rows of logits are apart, as a part of the larger one's reach.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let reach = a.iter().fold(0f32, |m, x| m.max(x.abs()));
    a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs())) / reach
}

fn best(logits: &[f32]) -> usize {
    logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).unwrap().0
}

/// Lets both go on for a few tokens: their logits are at most `slack` apart and the greedy tokens the same, but for ties within it.
fn assert_same_future(decoder: &Decoder, warm: (&mut Sequence, &[u32]), cold: (&mut Sequence, &[u32]), slack: f32) {
    let (mut warm_ids, mut cold_ids) = (warm.1.to_vec(), cold.1.to_vec());
    for step in 0..4 {
        let expected = pass(decoder, &mut [(cold.0, &cold_ids)]).remove(0);
        let ours = pass(decoder, &mut [(warm.0, &warm_ids)]).remove(0);
        let apart = distance(&expected, &ours);
        assert!(apart <= slack, "logits {apart} apart at step {step}");
        let reach = expected.iter().fold(0f32, |m, x| m.max(x.abs()));
        let (token, own) = (best(&expected), best(&ours));
        assert!(expected[token] - expected[own] <= slack * reach, "{own} instead of {token} at step {step}");
        (warm_ids, cold_ids) = (vec![token as u32], vec![token as u32]);
    }
}

/// Runs a program and checks every sequence that is left against a cold prefill in a pool of its own.
fn run(decoder: &Decoder, pool: &Pool, cold: impl Fn() -> Pool, program: &[Op], slack: f32) {
    let vocabulary = decoder.config().vocab_size as u32;
    let mut alive = vec![Alive { sequence: pool.sequence(), ids: Vec::new() }];
    let mut drawn = 17u32;
    for op in program {
        let count = alive.len();
        match op {
            Op::Append(parts) => {
                let mut new: Vec<Vec<u32>> = vec![Vec::new(); count];
                for (i, n) in parts {
                    let ids = (0..*n).map(|_| {
                        drawn = drawn.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                        (drawn >> 8) % vocabulary
                    });
                    new[i % count] = ids.collect();
                }
                let mut shares = Vec::new();
                for (one, ids) in alive.iter_mut().zip(&new) {
                    if !ids.is_empty() {
                        one.ids.extend(ids);
                        shares.push((&mut one.sequence, ids.as_slice()));
                    }
                }
                pass(decoder, &mut shares);
            }
            Op::Fork(i) if count < 8 => {
                let one = &alive[i % count];
                let fork = Alive { sequence: one.sequence.fork(), ids: one.ids.clone() };
                alive.push(fork);
            }
            Op::Truncate(i, part) => {
                let one = &mut alive[i % count];
                let length = (one.ids.len() as f64 * part) as usize;
                one.ids.truncate(length);
                one.sequence.truncate(length);
            }
            Op::Drop(i) if count > 1 => drop(alive.swap_remove(i % count)),
            Op::Adopt(i) if count < 8 => {
                let one = &alive[i % count];
                let units: Vec<Unit> = one.ids.iter().map(|id| Unit::Token(*id)).collect();
                one.sequence.publish(Salt(1), &units);
                let mut sequence = pool.sequence();
                assert_eq!(sequence.adopt(Salt(2), &units), 0, "another tenant's");
                let known = sequence.adopt(Salt(1), &units);
                assert_eq!(known, units.len() / BLOCK * BLOCK);
                let ids = one.ids[..known].to_vec();
                alive.push(Alive { sequence, ids });
            }
            _ => {}
        }
    }
    for mut one in alive {
        assert_eq!(one.sequence.len(), one.ids.len());
        if one.ids.is_empty() {
            continue;
        }
        // The last token goes in again, for its logits.
        let (past, last) = one.ids.split_at(one.ids.len() - 1);
        one.sequence.truncate(past.len());
        assert_same_future(decoder, (&mut one.sequence, last), (&mut cold().sequence(), &one.ids), slack);
    }
    pool.forget();
    assert_eq!(pool.fill().used, 0, "all memory is back");
}

fn tiny() -> Checkpoint {
    Checkpoint::open(&crate::tests("golden/tiny"), &Options { device: Device::Cpu, words: false }).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn i2_any_program_goes_on_as_a_cold_prefill(program in program(24, 70)) {
        let checkpoint = tiny();
        let pool = |kind| checkpoint.decoder.pool(8192, kind).unwrap();
        for (kind, slack) in [(KvType::F32, 1e-5), (KvType::F16, 2e-3), (KvType::Bf16, 2e-2), (KvType::Q8, 2e-2)] {
            // Against the same storage: what storage costs is measured apart from this.
            run(&checkpoint.decoder, &pool(kind), || pool(kind), &program, slack);
        }
    }

    #[test]
    fn i2_a_device_s_tables_go_on_as_the_cpu_s(program in program(16, 70)) {
        let checkpoint = tiny();
        let cold = || checkpoint.decoder.pool(8192, KvType::F32).unwrap();
        // Two ways of summing, which round differently.
        run(&checkpoint.decoder, &checkpoint.decoder.tensor_pool(8192).unwrap(), cold, &program, 5e-5);
    }

    #[test]
    fn i3_a_dropped_branch_leaves_the_prefix_as_it_was(prefix in 1usize..150, branches in prop::collection::vec(1usize..90, 1..4)) {
        let checkpoint = tiny();
        let decoder = &checkpoint.decoder;
        let pool = decoder.pool(8192, KvType::F32).unwrap();
        let ids: Vec<u32> = (0..prefix as u32).map(|i| i * 31 % 400).collect();
        let units: Vec<Unit> = ids.iter().map(|id| Unit::Token(*id)).collect();
        let mut trunk = pool.sequence();
        pass(decoder, &mut [(&mut trunk, &ids)]);
        trunk.publish(Salt(1), &units);
        let before = (pool.fill(), pass(decoder, &mut [(&mut trunk.fork(), &[7])]));
        for tokens in branches {
            let mut branch = trunk.fork();
            let provisional: Vec<u32> = (0..tokens as u32).map(|i| 399 - i).collect();
            pass(decoder, &mut [(&mut branch, &provisional)]);
            // Nothing of it can be found: neither behind the prefix nor by its own content.
            let mut longer = units.clone();
            longer.extend(provisional.iter().map(|id| Unit::Token(*id)));
            prop_assert!(pool.sequence().adopt(Salt(1), &longer) <= prefix);
        }
        prop_assert_eq!(trunk.len(), prefix);
        let after = (pool.fill(), pass(decoder, &mut [(&mut trunk.fork(), &[7])]));
        prop_assert_eq!(before, after, "same memory, same bits");
    }

    #[test]
    fn i4_company_in_a_pass_changes_nothing(past in 0usize..90, own in 1usize..40, company in prop::collection::vec((0usize..60, 1usize..40), 1..6)) {
        let checkpoint = tiny();
        company_changes_nothing(&checkpoint.decoder, past, own, &company, 1e-5);
    }
}

/// One sequence alone and the same beside others: its logits.
fn company_changes_nothing(decoder: &Decoder, past: usize, own: usize, company: &[(usize, usize)], slack: f32) {
    let pool = decoder.pool(8192, KvType::F32).unwrap();
    let ids = |seed: u32, n: usize| (0..n as u32).map(|i| (i * 29 + seed * 53) % 400).collect::<Vec<_>>();
    let begin = |seed: u32, past: usize| {
        let mut sequence = pool.sequence();
        if past > 0 {
            pass(decoder, &mut [(&mut sequence, &ids(seed, past))]);
        }
        sequence
    };
    let alone = pass(decoder, &mut [(&mut begin(0, past), &ids(90, own))]).remove(0);
    let mut others: Vec<Sequence> = company.iter().zip(1..).map(|((past, _), seed)| begin(seed, *past)).collect();
    let mine = &mut begin(0, past);
    let (own, news): (_, Vec<Vec<u32>>) =
        (ids(90, own), company.iter().zip(1..).map(|((_, n), s)| ids(s + 9, *n)).collect());
    let mut shares: Vec<(&mut Sequence, &[u32])> =
        others.iter_mut().zip(&news).map(|(s, n)| (s, n.as_slice())).collect();
    let place = shares.len() / 2;
    shares.insert(place, (mine, &own));
    let together = pass(decoder, &mut shares).remove(place);
    let apart = distance(&alone, &together);
    assert!(apart <= slack, "{apart} apart");
    assert_eq!(best(&alone), best(&together));
}

#[test]
fn i2_nano_goes_on_as_a_cold_prefill() {
    let nano = Checkpoint::open(&crate::nano_directory(), &Options { device: Device::Cpu, words: false }).unwrap();
    let pool = || nano.decoder.pool(2048, KvType::F32).unwrap();
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    for _ in 0..3 {
        let program = program(8, 40).new_tree(&mut runner).unwrap().current();
        run(&nano.decoder, &pool(), pool, &program, 0.0);
    }
}

#[test]
fn i4_nano_does_not_notice_company() {
    let nano = Checkpoint::open(&crate::nano_directory(), &Options { device: Device::Cpu, words: false }).unwrap();
    for company in [vec![(0, 1), (40, 1)], vec![(3, 17), (33, 1), (5, 5)]] {
        company_changes_nothing(&nano.decoder, 35, 1, &company, 0.0);
        company_changes_nothing(&nano.decoder, 0, 20, &company, 0.0);
    }
}

#[test]
fn a_fork_shares_all_but_the_block_it_writes_into() {
    let nano = Checkpoint::open(&crate::nano_directory(), &Options { device: Device::Cpu, words: false }).unwrap();
    let decoder = &nano.decoder;
    let pool = decoder.pool(4096, KvType::F32).unwrap();
    let ids: Vec<u32> = (0..500).map(|i| i * 7 % 1000 + 100).collect();
    let mut trunk = pool.sequence();
    pass(decoder, &mut [(&mut trunk, &ids)]);
    let before = pool.fill().used;
    let mut fork = trunk.fork();
    assert_eq!(pool.fill().used, before, "a fork alone takes nothing");
    let on = |sequence: &mut Sequence| (0..12).map(|t| pass(decoder, &mut [(sequence, &[t * 90])])).collect::<Vec<_>>();
    let forked = on(&mut fork);
    assert!(pool.fill().used - before < 2, "and one block when it writes");
    drop(fork);
    assert_eq!(pool.fill().used, before);
    assert_eq!(on(&mut trunk), forked, "the origin goes on as the fork did");
}

#[test]
fn what_is_stored_in_fewer_bits_is_nearly_the_same() {
    let nano = Checkpoint::open(&crate::nano_directory(), &Options { device: Device::Cpu, words: false }).unwrap();
    let ids =
        nano.tokenizer.text("The quick brown fox jumps over the lazy dog, and then it sleeps under the tree").unwrap();
    let logits = |kind| {
        let pool = nano.decoder.pool(512, kind).unwrap();
        pass(&nano.decoder, &mut [(&mut pool.sequence(), &ids)]).remove(0)
    };
    let exact = logits(KvType::F32);
    for (kind, slack) in [(KvType::F16, 0.03), (KvType::Bf16, 0.06), (KvType::Q8, 0.12)] {
        let apart = distance(&exact, &logits(kind));
        assert!(apart < slack, "{kind:?}: {apart}");
        assert!(apart > 0.0, "{kind:?} is not f32");
    }
}

#[test]
fn a_full_pool_refuses_and_changes_nothing() {
    let checkpoint = tiny();
    let decoder = &checkpoint.decoder;
    let pool = decoder.pool(4 * BLOCK, KvType::F32).unwrap();
    let ids: Vec<u32> = (0..3 * BLOCK as u32).collect();
    let units: Vec<Unit> = ids.iter().map(|id| Unit::Token(*id)).collect();
    let mut first = pool.sequence();
    pass(decoder, &mut [(&mut first, &ids)]);
    let mut second = first.fork();
    let too_many = decoder.embed(&ids[..2 * BLOCK]).unwrap();
    let refused = decoder.forward(&too_many, &mut [Share { sequence: &mut second, tokens: 2 * BLOCK }]);
    assert!(matches!(refused, Err(Error::KvFull { blocks: 4 })), "{refused:?}");
    assert_eq!((second.len(), pool.fill().used), (3 * BLOCK, 3));
    // What only the index remembers gives way, the least recently used first; what is held does not.
    first.publish(Salt(1), &units);
    drop((first, second));
    assert_eq!((pool.fill().used, pool.fill().remembered), (3, 3));
    let mut third = pool.sequence();
    assert_eq!(third.adopt(Salt(1), &units[..BLOCK]), BLOCK);
    pass(decoder, &mut [(&mut third, &ids[..3 * BLOCK])]);
    assert_eq!((pool.fill().used, pool.fill().remembered), (4, 0));
}
