// Whether to rely on an answer: the prediction set, whether to abstain, whether the image is like the known ones.
// The thresholds are in web.json under "uncertainty"; they were calibrated on images that the network was not trained on.

// the likeliest classes that the entropy is summed over, and its exponent: Liu, Lochman & Zach, "GEN", CVPR 2023
const NUM_TOP = 100;
const GAMMA = 0.1;

// positions of the classes, the likeliest first
export function ranked(probs) {
  return [...probs.keys()].sort((a, b) => probs[b] - probs[a] || a - b);
}

// {inside: positions of the classes in the set, the likeliest first; abstain; ood}; abstain is null where no confidence
// holds the error, ood where there is no score of it
export function reliance(probs, told) {
  const order = ranked(probs);
  const limit = entry(told.set_thresholds, told.coverage) ?? Infinity;
  const answeredFrom = entry(told.answered_from, told.risk);
  const scores = scoresOf(probs, order, told);
  return {
    // the likeliest class is always in the set
    inside: order.filter((place, rank) => rank === 0 || scores[place] <= limit),
    abstain: answeredFrom === null ? null : probs[order[0]] < answeredFrom,
    ood: told.ood === null ? null : entropy(probs) > told.ood.threshold,
  };
}

function scoresOf(probs, order, told) {
  if (told.method === "lac") return Array.from(probs, (value) => 1 - value);
  const scores = new Array(probs.length);
  let sum = 0;
  order.forEach((place, rank) => {
    sum += probs[place];
    scores[place] = sum + (told.method === "raps" ? told.penalty * Math.max(0, rank + 1 - told.free_ranks) : 0);
  });
  return scores;
}

function entropy(probs) {
  const most = Float64Array.from(probs).sort().slice(-NUM_TOP);
  return most.reduce((sum, value) => sum + Math.min(1, Math.max(0, value * (1 - value))) ** GAMMA, 0);
}

function entry(table, rate) {
  const found = table.find(([known]) => Math.abs(known - rate) < 1e-9);
  return found === undefined ? null : found[1];
}
