"use strict";
(() => {
  const viewer = document.getElementById("viewer");
  if (!viewer) return;
  const data = JSON.parse(document.getElementById("walks").textContent);
  const part = (name) => viewer.querySelector(`[data-part="${name}"]`);
  const [choice, slider, status, box, play] = ["choice", "slider", "status", "tokens", "play"].map(part);
  let walk, pieces, spans, last, frame = 0, timer = null;

  // The state after a number of changes; 1024 steps of 1024 tokens are a few thousand entries.
  function stateAt(count) {
    const ids = walk.start.slice(), resets = ids.map(() => 0);
    const written = new Set(), fresh = new Set(), renewed = new Set();
    walk.changes.slice(0, count).forEach(([, , positions, tokens, reset], k) => {
      positions.forEach((p, j) => { ids[p] = tokens[j]; written.add(p); if (k === count - 1) fresh.add(p); });
      reset.forEach((p) => { resets[p] += 1; if (k === count - 1) renewed.add(p); });
    });
    return { ids, resets, written, fresh, renewed };
  }

  const textOf = (id) => (id === walk.mask ? "  " : (pieces[id] || "·").replaceAll("\n", "↵\n"));

  function show(count) {
    frame = Math.max(0, Math.min(walk.changes.length, count));
    const now = stateAt(frame);
    let masks = 0;
    spans.forEach((span, p) => {
      const masked = now.ids[p] === walk.mask;
      masks += masked;
      // A mask is as wide as the token that will stand there: nothing moves while one reads.
      const text = textOf(masked ? last[p] : now.ids[p]);
      const kind = masked ? `mask m${now.resets[p] % 6}${now.renewed.has(p) ? " reset" : ""}`
        : now.fresh.has(p) ? "fresh" : now.written.has(p) || !walk.hasMasks ? "" : "given";
      if (span.textContent !== text) span.textContent = text;
      if (span.className !== kind) span.className = kind;
      if (masked) span.setAttribute("aria-hidden", "true"); else span.removeAttribute("aria-hidden");
    });
    slider.value = frame;
    const [step, t] = frame ? walk.changes[frame - 1] : [0, null];
    const words = frame
      ? `step ${step} of ${walk.numSteps}, t = ${Number(t.toFixed(3))}: ${now.fresh.size} written, ${now.renewed.size} masks reset, `
      : `before step 1 of ${walk.numSteps}: `;
    status.textContent = `${words}${masks} masks left`;
    slider.setAttribute("aria-valuetext", status.textContent);
  }

  function choose(index) {
    stop();
    walk = data.walks[index];
    pieces = data.pieces[walk.pieces];
    slider.max = walk.changes.length;
    walk.hasMasks = walk.start.includes(walk.mask);
    last = stateAt(walk.changes.length).ids;
    spans = walk.start.map(() => document.createElement("span"));
    box.replaceChildren(...spans);
    show(0);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function toggle() {
    if (timer !== null) return stop();
    if (frame === walk.changes.length) show(0);
    play.textContent = "Pause";
    const pause = Math.max(40, Math.min(700, 8000 / walk.changes.length));
    timer = setInterval(() => {
      show(frame + 1);
      if (frame === walk.changes.length) stop();
    }, pause);
  }

  const moves = {
    first: () => show(0), back: () => show(frame - 1), next: () => show(frame + 1),
    last: () => show(walk.changes.length), play: toggle,
  };
  for (const [name, act] of Object.entries(moves)) {
    part(name).addEventListener("click", () => { if (name !== "play") stop(); act(); });
  }
  const keys = {
    ArrowLeft: moves.back, ArrowRight: moves.next, Home: moves.first, End: moves.last,
    PageUp: () => show(frame - 10), PageDown: () => show(frame + 10), " ": toggle,
  };
  viewer.addEventListener("keydown", (event) => {
    const act = keys[event.key];
    const spaceOnButton = event.key === " " && event.target.tagName === "BUTTON";
    if (!act || event.target === choice || spaceOnButton || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (act !== toggle) stop();
    act();
  });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  choice.addEventListener("change", () => choose(choice.selectedIndex));
  choose(choice.selectedIndex);
})();
