"use strict";
// The table of problems. Texts that a model or a dataset wrote only ever become text nodes.
(() => {
  const grid = document.getElementById("grid");
  if (!grid) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const filters = document.getElementById("filters");
  const rowsBox = document.getElementById("rows");
  const space = document.getElementById("space");
  const heads = document.getElementById("heads");
  const count = document.getElementById("count");
  const detail = document.getElementById("detail");
  const MARKS = { win: "▲", loss: "▼", right: "✓", wrong: "✗" };
  const OUTCOMES = { win: "only RL is right", loss: "only the plain model is right", right: "both right", wrong: "both wrong" };
  const RANK = { win: 0, loss: 1, right: 2, wrong: 3 };

  const text = (number) => (number === null ? "" : data.texts[number]);
  const make = (tag, className, content) => {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (content !== undefined) node.textContent = content;
    return node;
  };
  // A gate of several parts (bands or layers) is shown by its mean.
  const unpack = (packed) => {
    const parts = packed[0].split(" ").map(Number);
    const mean = parts.reduce((sum, part) => sum + part, 0) / parts.length;
    return {
      label: parts.length > 1 ? `mean ${mean.toFixed(2)}` : packed[0], whole: packed[0], mean,
      colours: packed[1], arms: packed[2], completion: text(packed[3]), tokens: packed[4],
      parsed: text(packed[5]), status: packed[6], correct: packed[7] === 1, reward: packed[8],
    };
  };
  const problems = data.splits.flatMap((split) =>
    split.rows.map((row, order) => {
      const cells = row.cells.map(unpack);
      const base = cells[row.base], rl = cells[row.rl];
      const outcome = base.correct ? (rl.correct ? "right" : "loss") : rl.correct ? "win" : "wrong";
      const length = split.features.indexOf("prompt_length");
      return {
        split, row, order, cells, base, rl, outcome,
        question: text(row.question),
        length: length < 0 ? null : row.features[length],
        sensitive: cells.some((cell) => cell.correct !== base.correct),
      };
    }),
  );

  const chip = (cell) => {
    const node = make("span", cell.colours.length > 1 ? "chip strip" : "chip");
    node.title = cell.whole;
    const of = (colour) => (colour === null ? "var(--faint)" : `var(--gate${colour})`);
    const end = (i) => `${(100 * i) / cell.colours.length}%`;
    const stops = cell.colours.map((colour, i) => `${of(colour)} ${end(i)} ${end(i + 1)}`);
    node.style.background = stops.length > 1 ? `linear-gradient(90deg, ${stops.join(", ")})` : of(cell.colours[0]);
    return node;
  };
  const gateOf = (cell, className, label = cell.label) => {
    const node = make("span", className);
    node.append(chip(cell), label);
    return node;
  };
  const answerOf = (cell, className) =>
    make("span", `${className} ${cell.correct ? "yes" : "no"}`, cell.parsed || "none");

  const COLUMNS = [
    { name: "", title: "Outcome", key: (p) => RANK[p.outcome], draw: (p) => {
      const node = make("span", `mark ${p.outcome}`, MARKS[p.outcome]);
      node.title = OUTCOMES[p.outcome];
      return node;
    } },
    { name: "Problem", key: (p) => p.order, draw: (p) => make("span", "question", p.question) },
    { name: "Prompt", title: "Tokens of the prompt", numeric: true, small: true, key: (p) => p.length,
      draw: (p) => make("span", "n small", p.length ?? "") },
    { name: "Steps", title: "Steps of the reference solution", numeric: true, small: true, key: (p) => p.row.steps,
      draw: (p) => make("span", "n small", p.row.steps ?? "") },
    { name: "Gate", title: "RL's gate", numeric: true, key: (p) => p.rl.mean, draw: (p) => gateOf(p.rl, "n gate", p.rl.label.replace("mean ", "")) },
    { name: "Base", title: "The plain model's answer", numeric: true, key: (p) => Number(p.base.correct),
      draw: (p) => answerOf(p.base, "n answer base") },
    { name: "RL", title: "The answer under RL's gate", numeric: true, key: (p) => Number(p.rl.correct),
      draw: (p) => answerOf(p.rl, "n answer deployed") },
    { name: "Seeds", title: "Share of the seeds whose gate is right", numeric: true, small: true, key: (p) => p.row.seeds,
      draw: (p) => make("span", "n small", p.row.seeds === null ? "" : `${Math.round(100 * p.row.seeds)} %`) },
  ];

  // Filters and order
  let shown = [], order = { column: 1, falling: false };
  const option = (select, value, label) => {
    const node = make("option", "", label);
    node.value = value;
    select.append(node);
  };
  option(filters.elements.gate, "", "all");
  const gates = new Map(problems.map((p) => [p.rl.label, p.rl.mean]));
  [...gates].sort((a, b) => a[1] - b[1]).forEach(([label]) => option(filters.elements.gate, label, label));
  data.splits.forEach((split, i) => option(filters.elements.split, String(i), split.name));
  if (data.splits.length > 1) option(filters.elements.split, "", "all");

  const searched = (p) => {
    p.haystack ??= [p.row.id, p.question, text(p.row.gold), ...p.cells.map((cell) => cell.completion)].join("\n").toLowerCase();
    return p.haystack;
  };
  const choose = () => {
    const wanted = Object.fromEntries(new FormData(filters));
    const words = wanted.text.trim().toLowerCase();
    const split = wanted.split === "" ? null : data.splits[Number(wanted.split)];
    const pool = problems.filter((p) => !split || p.split === split);
    shown = pool.filter((p) =>
      (!wanted.outcome || (wanted.outcome === "sensitive" ? p.sensitive : p.outcome === wanted.outcome)) &&
      (!wanted.gate || p.rl.label === wanted.gate) &&
      (!words || searched(p).includes(words)));
    const { key } = COLUMNS[order.column], sign = order.falling ? -1 : 1;
    shown.sort((a, b) => {
      const x = key(a), y = key(b);
      if (x === y || (Number.isNaN(x) && Number.isNaN(y))) return a.order - b.order;
      if (x === null || Number.isNaN(x)) return 1; // unknown values come last
      if (y === null || Number.isNaN(y)) return -1;
      return sign * (x < y ? -1 : 1);
    });
    const of = (outcome) => shown.filter((p) => p.outcome === outcome).length;
    count.textContent = `${shown.length.toLocaleString("en")} of ${pool.length.toLocaleString("en")} problems, ` +
      `▲ ${of("win")} wins, ▼ ${of("loss")} losses`;
    grid.setAttribute("aria-rowcount", String(shown.length + 1));
    rowsBox.scrollTop = 0;
    draw();
  };

  COLUMNS.forEach((column, i) => {
    const head = make("span", column.numeric ? "n" : "");
    if (column.small) head.classList.add("small");
    head.setAttribute("role", "columnheader");
    const button = make("button", "", column.name || MARKS.win + MARKS.loss);
    button.type = "button";
    button.title = column.title || column.name;
    button.addEventListener("click", () => {
      order = { column: i, falling: order.column === i && !order.falling };
      sorted();
      choose();
    });
    head.append(button);
    heads.append(head);
  });
  const sorted = () => [...heads.children].forEach((head, i) => {
    if (i === order.column) head.setAttribute("aria-sort", order.falling ? "descending" : "ascending");
    else head.removeAttribute("aria-sort");
  });

  // Only the rows in sight are in the document.
  const narrow = window.matchMedia("(max-width: 720px)");
  const height = () => (narrow.matches ? 64 : 44);
  let waiting = false;
  const draw = () => {
    waiting = false;
    const tall = height();
    rowsBox.style.setProperty("--row", `${tall}px`);
    space.style.height = `${shown.length * tall}px`;
    const first = Math.max(0, Math.floor(rowsBox.scrollTop / tall) - 4);
    const last = Math.min(shown.length, Math.ceil((rowsBox.scrollTop + rowsBox.clientHeight) / tall) + 4);
    const lines = [];
    for (let i = first; i < last; i++) {
      const line = make("div", "line");
      line.setAttribute("role", "row");
      line.setAttribute("aria-rowindex", String(i + 2));
      line.style.top = `${i * tall}px`;
      line.dataset.index = String(i);
      COLUMNS.forEach((column) => {
        const node = column.draw(shown[i]);
        node.setAttribute("role", "gridcell");
        line.append(node);
      });
      lines.push(line);
    }
    if (!shown.length) lines.push(make("p", "empty", "No problem is like that."));
    rowsBox.replaceChildren(space, ...lines);
  };
  const soon = () => {
    if (!waiting) requestAnimationFrame(draw);
    waiting = true;
  };
  rowsBox.addEventListener("scroll", soon, { passive: true });
  window.addEventListener("resize", soon);
  rowsBox.addEventListener("click", (event) => {
    const line = event.target.closest(".line");
    if (line) open(Number(line.dataset.index));
  });
  rowsBox.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && shown.length) open(Math.min(shown.length - 1, Math.ceil(rowsBox.scrollTop / height())));
  });
  filters.addEventListener("input", choose);
  filters.addEventListener("submit", (event) => event.preventDefault());

  // One problem
  const button = (label, title, act, enabled = true) => {
    const node = make("button", "", label);
    node.type = "button";
    node.title = title;
    node.setAttribute("aria-label", title);
    node.disabled = !enabled;
    node.addEventListener("click", act);
    return node;
  };
  const facts = (pairs) => {
    const list = make("dl", "verdict");
    pairs.forEach(([name, value]) => {
      const pair = make("div");
      pair.append(make("dt", "", name), typeof value === "object" ? value : make("dd", "", value));
      list.append(pair);
    });
    return list;
  };
  const side = (title, cell, arms) => {
    const box = make("div");
    const head = make("h4", "", `${title}, gate `);
    head.append(gateOf(cell, ""));
    const parsed = make("dd", cell.correct ? "yes" : "no", cell.parsed || "none");
    const measured = facts([["answer", parsed], ["reward", String(cell.reward)], ["tokens", String(cell.tokens)]]);
    const status = data.statuses[cell.status] ?? cell.status;
    if (status) measured.append(make("div", "", status));
    box.append(head, make("pre", "", cell.completion), measured);
    if (cell.arms.length) box.append(make("p", "by", `Chosen by ${cell.arms.map((i) => arms[i]).join(", ")}`));
    return box;
  };
  const folded = (title, content) => {
    const box = make("details");
    box.append(make("summary", "", title), make("pre", "", content));
    return box;
  };
  const open = (index, picked) => {
    const p = shown[index];
    const right = p.cells[picked ?? p.row.rl];
    const bar = make("div", "bar");
    const mark = make("span", `mark ${p.outcome}`, MARKS[p.outcome]);
    mark.title = OUTCOMES[p.outcome];
    bar.append(
      mark, make("h3", "", p.row.id),
      button("↑", "Previous problem", () => open(index - 1), index > 0),
      button("↓", "Next problem", () => open(index + 1), index + 1 < shown.length),
      button("Close", "Close", () => detail.close()),
    );
    const body = make("div", "body");
    body.append(make("h4", "", "Question"), make("p", "", p.question));
    body.append(facts([["right answer", text(p.row.gold)], ["outcome", OUTCOMES[p.outcome]]]));
    body.append(make("h4", "", "Features"), facts(p.split.features.map((name, i) => [name.replaceAll("_", " "), String(p.row.features[i])])));
    body.append(make("h4", "", "Gates"));
    const gates = make("div", "gates");
    p.cells.forEach((cell, i) => {
      const choice = button("", `Show gate ${cell.label}`, () => open(index, i));
      choice.append(chip(cell), `${cell.label} ${cell.correct ? "✓" : "✗"}`);
      if (i === p.row.rl) choice.append(" RL");
      choice.setAttribute("aria-pressed", String(cell === right));
      gates.append(choice);
    });
    const sides = make("div", "sides");
    const { arms } = p.split;
    sides.append(side("Plain model", p.base, arms), side(right === p.rl ? "RL" : "Other gate", right, arms));
    body.append(gates, sides);
    if (p.row.prompt !== null) body.append(folded("Prompt as the model reads it", text(p.row.prompt)));
    if (p.row.solution !== null) body.append(folded("Reference solution", text(p.row.solution)));
    detail.replaceChildren(bar, body);
    if (!detail.open) detail.showModal();
    if (picked === undefined) detail.scrollTop = 0;
  };
  detail.addEventListener("click", (event) => {
    if (event.target === detail) detail.close();
  });

  sorted();
  choose();
})();
