// The report's page. Data comes from the JSON in the page; charts are Plotly's.
"use strict";
(() => {
  const D = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const el = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (key === "text") node.textContent = value;
      else if (key in node && key !== "list" && key !== "role") node[key] = value;
      else node.setAttribute(key, value);
    }
    node.append(...children.filter((c) => c !== undefined && c !== null));
    return node;
  };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const PREDICTIONS = -2, CHANCE = -1;
  const columnTitle = (c) => (c === CHANCE ? "chance" : c === PREDICTIONS ? "classification" : D.columns[c].title);
  const imageMetrics = D.metrics.map((m, k) => [m, k]).filter(([m]) => m.of_maps && m.level === "image").map(([, k]) => k);
  const mapMetrics = D.metrics.map((m, k) => [m, k]).filter(([m]) => m.of_maps).map(([, k]) => k);

  // Cells by model, column and metric.
  const cells = new Map(D.cells.map((c) => [`${c.m} ${c.c} ${c.k}`, c]));
  const cell = (m, c, k) => cells.get(`${m} ${c} ${k}`);
  const comparisons = new Map(D.comparisons.map((c) => [`${c.m} ${c.k}`, c]));
  const comparison = (m, k) => comparisons.get(`${m} ${k}`);

  // Numbers.
  const shown = (value, metric) => {
    if (value === null || value === undefined) return "";
    if (metric.unit === "share") return (value * 100).toFixed(1);
    const size = Math.abs(value);
    return size >= 1000 || (size > 0 && size < 0.001) ? value.toExponential(2) : value.toFixed(3);
  };
  const p = (value) => (value < 0.001 ? "p < 0.001" : `p = ${value.toFixed(3)}`);
  // Charts have the numbers of the tables: shares in percent.
  const scaled = (value, metric) => (value === null || value === undefined ? null : metric.unit === "share" ? 100 * value : value);
  const axisTitle = (metric) => (metric ? metric.short + (metric.unit === "share" ? ", %" : metric.unit ? `, ${metric.unit}` : "") : "");
  const patients = D.patients ? "patients" : "images (the source has no patient numbers)";
  // Names are text, not the markup that Plotly reads.
  const label = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll("%{", "%\u200b{");
  // The number that a list stands at; null where it is empty.
  const chosen = (id) => ($(id).value === "" ? null : Number($(id).value));

  // Tips: on hover, focus or tap.
  const tip = $("tip");
  let described = null;
  const hide = () => {
    tip.hidden = true;
    described?.removeAttribute("aria-describedby");
    described = null;
  };
  const place = (target) => {
    if (!target.isConnected) return;
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    tip.style.left = "0";
    described?.removeAttribute("aria-describedby");
    target.setAttribute("aria-describedby", "tip");
    described = target;
    const box = target.getBoundingClientRect(), size = tip.getBoundingClientRect();
    const left = Math.max(4, Math.min(box.left, innerWidth - size.width - 4));
    const below = box.bottom + 6 + size.height < innerHeight;
    tip.style.left = `${left}px`;
    tip.style.top = `${below ? box.bottom + 6 : Math.max(4, box.top - size.height - 6)}px`;
  };
  const tipped = (event) => event.target.closest?.("[data-tip]");
  let pointer = "";
  for (const name of ["mouseover", "focusin", "click"]) {
    document.addEventListener(name, (event) => {
      // What scrolls under a resting pointer is not pointed at.
      if (name === "mouseover") {
        const at = `${event.screenX} ${event.screenY}`;
        if (at === pointer) return;
        pointer = at;
      }
      const target = tipped(event);
      if (target) place(target);
      else hide();
    });
  }
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", (event) => event.key === "Escape" && hide());
  // It stays with what it is of.
  addEventListener("scroll", () => described && place(described), true);

  const fill = (select, options) => select.replaceChildren(...options.map(([value, text]) => el("option", { value, text })));
  const modelOptions = D.models.map((m, i) => [i, m]);
  const metricOptions = (list) => list.map((k) => [k, D.metrics[k].short]);

  // Header.
  const many = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
  $("subtitle").textContent = [
    many(D.models.length, "model"), many(D.explainers, "explainer"), many(D.metrics.length, "metric"),
    many(D.folds, "fold"), many(D.seeds, "training") + " each", many(D.images.length, "test image"),
  ].join(" · ");

  // Leaderboard.
  const families = [...new Set(D.metrics.map((m) => m.family))];
  // A few of each family; of a family with none of them, its first. Few metrics are all shown.
  const usual = ["pixel-auprc", "hit", "mass-lift", "shortcut-mass", "insertion", "deletion", "srg", "max-sensitivity", "parameter-randomisation", "gini"];
  const covered = new Set(D.metrics.filter((m) => usual.includes(m.name)).map((m) => m.family));
  const overview = D.metrics.map((_, k) => k).filter((k) => {
    const m = D.metrics[k];
    const first = D.metrics.findIndex((o) => o.family === m.family) === k;
    return D.metrics.length <= 10 || !m.of_maps || usual.includes(m.name) || k === D.primary || (!covered.has(m.family) && first);
  });
  fill($("board-model"), [["all", "all models"], ...modelOptions]);
  fill($("board-family"), [["overview", "overview"], ["every", "all metrics"], ...families.map((f) => [f, f])]);
  $("board-model").value = D.models.length === 1 ? "0" : "all";
  const board = { key: null, down: true };

  const tipOf = (m, c, k) => {
    const metric = D.metrics[k], found = cell(m, c, k);
    const lines = [`${D.models[m]} × ${columnTitle(c)}: ${metric.title}`];
    if (!found || found.state === "n/a") {
      lines.push(`N/A: ${found?.reason ?? "nothing was computed"}`);
      return lines.join("\n");
    }
    if (found.state === "failed") {
      lines.push(`Failed: ${found.reason}`);
      return lines.join("\n");
    }
    const unit = metric.unit === "share" ? " %" : metric.unit ? ` ${metric.unit}` : "";
    lines.push(`Mean ${shown(found.mean, metric)}${unit}; ${metric.better} is better; chance: ${metric.chance}`);
    if (found.interval) lines.push(`95 % over ${patients}: ${shown(found.interval[0], metric)} to ${shown(found.interval[1], metric)}`);
    if (found.fold_std !== null) lines.push(`Standard deviation over ${D.folds} folds: ${shown(found.fold_std, metric)}`);
    if (found.seed_std !== null) lines.push(`Standard deviation over trainings: ${shown(found.seed_std, metric)}`);
    if (found.maps) lines.push(`${found.images} images, ${found.maps} maps: ${found.failed} failed, ${found.constant} constant`);
    if (found.without !== null && found.without !== undefined) lines.push(`${shown(found.without, metric)} without the maps that failed`);
    const compared = comparison(m, k), at = compared?.columns.indexOf(c);
    if (compared && at >= 0) {
      const d = compared.differences[at];
      if (at === compared.best) lines.push("The best mean of this model, controls aside.");
      else {
        const interval = d.interval ? ` [${shown(d.interval[0], metric)}, ${shown(d.interval[1], metric)}]` : "";
        lines.push(`Less the best, ${columnTitle(compared.columns[compared.best])}: ${d.mean === null ? "no mean, maps failed" : shown(d.mean, metric)}${interval}, ${p(d.p)}: ${d.tied ? "not told apart" : "different"}`);
      }
      if (d.beats === false) lines.push(`Does not beat the best control, ${columnTitle(compared.columns[compared.control])}.`);
    }
    return lines.join("\n");
  };

  const boardCell = (m, c, k, intervals) => {
    const metric = D.metrics[k], found = cell(m, c, k);
    const node = el("td", { tabIndex: -1 });
    node.dataset.tip = tipOf(m, c, k);
    node.dataset.metric = metric.label;
    if (!found || found.state === "n/a") {
      node.className = "none";
      node.append("N/A");
      return node;
    }
    if (found.state === "failed") {
      node.className = "failed";
      node.append("failed");
      return node;
    }
    const compared = comparison(m, k), at = compared ? compared.columns.indexOf(c) : -1;
    node.append(shown(found.mean, metric) + (found.failed > 0.01 * found.maps ? "!" : "") + (found.without === null ? "" : ` (${shown(found.without, metric)})`));
    if (at >= 0 && at === compared.best) {
      node.className = "best";
      node.append(el("span", { "aria-hidden": "true", text: " ★" }), el("span", { className: "hidden", text: " best" }));
    } else if (at >= 0 && compared.differences[at].tied && !D.columns[c].control) {
      node.className = "tied";
      node.append(el("span", { "aria-hidden": "true", text: " ≈" }), el("span", { className: "hidden", text: " not told apart from the best" }));
    }
    if (at >= 0 && compared.differences[at].beats === false) {
      node.append(el("span", { "aria-hidden": "true", text: " ▽" }), el("span", { className: "hidden", text: " does not beat the best control" }));
    }
    if (intervals && found.interval) {
      node.append(el("small", { text: `${shown(found.interval[0], metric)} to ${shown(found.interval[1], metric)}` }));
    }
    return node;
  };

  const drawBoard = () => {
    const which = $("board-model").value, family = $("board-family").value;
    const models = which === "all" ? D.models.map((_, i) => i) : [Number(which)];
    let metrics = family === "overview" ? overview : D.metrics.map((_, k) => k).filter((k) => family === "every" || D.metrics[k].family === family);
    const words = $("board-filter").value.trim().toLowerCase();
    const controls = $("board-controls").checked, intervals = $("board-intervals").checked;
    let rows = [];
    for (const m of models) {
      if (metrics.some((k) => !D.metrics[k].of_maps) && !words) rows.push({ m, c: PREDICTIONS });
      D.columns.forEach((column, c) => {
        const text = `${column.title} ${column.family} ${column.name}`.toLowerCase();
        if ((controls || !column.control) && text.includes(words)) rows.push({ m, c });
      });
      if (controls && !words && metrics.some((k) => cell(m, CHANCE, k))) rows.push({ m, c: CHANCE });
    }
    if (typeof board.key === "number" && !metrics.includes(board.key)) board.key = null;
    const value = (row, k) => cell(row.m, row.c, k)?.mean ?? null;
    if (board.key === "name") {
      rows.sort((a, b) => (board.down ? 1 : -1) * name(a).localeCompare(name(b)));
    } else if (board.key !== null && metrics.includes(board.key)) {
      const sign = (D.metrics[board.key].better === "higher") === board.down ? -1 : 1;
      const rank = (row) => {
        const v = value(row, board.key);
        return v === null ? Infinity : sign * v;
      };
      rows = rows.map((row) => [rank(row), row]).sort((a, b) => (a[0] === b[0] ? 0 : a[0] - b[0])).map(([, row]) => row);
    }
    function name(row) {
      const prefix = models.length > 1 ? `${D.models[row.m]} · ` : "";
      return prefix + (row.c === PREDICTIONS ? "classification" : columnTitle(row.c));
    }
    // As the values go, whichever of them is better.
    const falls = (key) => (key === "name" ? !board.down : (D.metrics[key].better === "higher") === board.down);
    const sorted = (key) => (board.key === key ? (falls(key) ? "descending" : "ascending") : "none");
    const header = (key, text, metric) => {
      const button = el("button", { type: "button", text }, metric ? el("small", { text: `${metric.better} is better` }) : null);
      button.addEventListener("click", () => {
        board.down = board.key === key ? !board.down : true;
        board.key = key;
        drawBoard();
        $("board").querySelector(`th[data-key="${key}"] button`)?.focus();
      });
      const th = el("th", { scope: "col", "aria-sort": sorted(key) }, button);
      th.dataset.key = key;
      if (metric) th.dataset.tip = `${metric.title}\n${metric.formula}\nRange ${metric.range.map((v) => v ?? "open").join(" to ")}; ${metric.better} is better; chance: ${metric.chance}\n${metric.edge_cases}`;
      return th;
    };
    const head = el("thead", {}, el("tr", {}, header("name", models.length > 1 ? "model · explainer" : "explainer"), ...metrics.map((k) => header(k, D.metrics[k].short, D.metrics[k]))));
    const body = el("tbody", {}, ...rows.map((row) => {
      const column = row.c >= 0 ? D.columns[row.c] : null;
      const th = el("th", { scope: "row", text: name(row) }, column ? el("small", { text: column.control ? "control" : column.family }) : null);
      const tr = el("tr", { className: column?.control || row.c === CHANCE ? "control" : "" }, th, ...metrics.map((k) => {
        const of = D.metrics[k].of_maps;
        const none = (row.c === PREDICTIONS) === of || (row.c === CHANCE && !cell(row.m, row.c, k));
        return none ? el("td", {}) : boardCell(row.m, row.c, k, intervals);
      }));
      tr.dataset.row = name(row);
      return tr;
    }));
    $("board").replaceChildren(el("caption", { className: "hidden", text: "Mean scores of every explainer on every model" }), head, body);
    // One stop for the keyboard; arrows go on from there.
    const first = $("board").querySelector("td[data-tip]");
    if (first) first.tabIndex = 0;
    const order = board.key === null ? "in the spec's order" : board.key === "name" ? `sorted by name, ${board.down ? "A to Z" : "Z to A"}` : `sorted by ${D.metrics[board.key].short}, ${board.down ? "best first" : "worst first"}`;
    $("board-status").textContent = `${rows.length} rows, ${metrics.length} metrics, ${order}`;
  };
  $("board").addEventListener("keydown", (event) => {
    const at = event.target.closest("td[data-tip]");
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!at || !step) return;
    const rows = [...$("board").tBodies[0].rows], row = at.parentNode, column = [...row.cells].indexOf(at);
    for (let r = rows.indexOf(row) + step[0], c = column + step[1]; rows[r]?.cells[c]; r += step[0], c += step[1]) {
      const next = rows[r].cells[c];
      if (next.dataset.tip) {
        at.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
        break;
      }
    }
    event.preventDefault();
  });
  for (const id of ["board-model", "board-family", "board-controls", "board-intervals"]) $(id).addEventListener("change", drawBoard);
  $("board-filter").addEventListener("input", drawBoard);
  drawBoard();
  $("notes").append(el("details", {}, el("summary", { text: `${D.notes.length} notes: data, training, what does not apply, what failed` }), el("ul", {}, ...D.notes.map((n) => el("li", { text: n })))));

  // Charts are drawn when they come into view and the library is there.
  const charts = new Map();
  const seen = new Set();
  // The library is in the page as text, and read when the first chart comes near.
  const load = () => {
    const script = document.createElement("script");
    script.textContent = $("plotly").textContent;
    document.head.append(script);
  };
  let printing = false;
  const draw = (id) => {
    if (!seen.has(id)) return;
    if (!window.Plotly) load();
    const { data, layout } = charts.get(id)();
    const base = {
      font: { family: css("--font"), color: printing ? "#000" : css("--ink"), size: 12 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 60, r: 20, t: 10, b: 50 }, hovermode: "closest",
      colorway: ["#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#999933", "#882255", "#44AA99", "#661100"],
    };
    const axis = { gridcolor: css("--line"), zerolinecolor: css("--line"), automargin: true };
    const merged = { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
    window.Plotly.react($(id), data, merged, { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] });
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (entry.isIntersecting && !seen.has(entry.target.id)) {
        seen.add(entry.target.id);
        draw(entry.target.id);
      }
    }
  }, { rootMargin: "200px" });
  const chart = (id, make) => {
    charts.set(id, make);
    watcher.observe($(id));
  };
  const redraw = () => charts.forEach((_, id) => draw(id));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  const closed = [];
  addEventListener("beforeprint", () => {
    printing = true;
    charts.forEach((_, id) => seen.add(id));
    document.querySelectorAll("#notes details:not([open]), #differences details:not([open]), #time details:not([open])").forEach((d) => {
      d.open = true;
      closed.push(d);
    });
    redraw();
  });
  addEventListener("afterprint", () => {
    printing = false;
    closed.splice(0).forEach((d) => (d.open = false));
    redraw();
  });
  const on = (ids, f) => ids.forEach((id) => $(id).addEventListener("change", f));
  const plain = (table, head, rows, prose = false) => {
    table.className = prose ? "prose" : "";
    table.replaceChildren(
      el("thead", {}, el("tr", {}, ...head.map((text) => el("th", { scope: "col", text })))),
      el("tbody", {}, ...rows.map(([first, ...rest]) => el("tr", {}, el("th", { scope: "row", text: first }), ...rest.map((text) => el("td", { text }))))),
    );
  };

  // Differences: mean ranks and what cannot be told apart.
  const ranked = imageMetrics.filter((k) => D.models.some((_, m) => comparison(m, k)));
  fill($("cd-model"), modelOptions);
  fill($("cd-metric"), metricOptions(ranked));
  if (ranked.includes(D.primary)) $("cd-metric").value = D.primary;
  const cdChosen = () => (chosen("cd-metric") === null ? null : comparison(chosen("cd-model"), chosen("cd-metric")));
  const cdText = () => {
    const found = cdChosen(), metric = D.metrics[chosen("cd-metric")];
    if (!found) {
      $("cd-caption").textContent = "Fewer than two explainers, or fewer than five patients, have values to compare.";
      plain($("cd-table"), ["explainer"], []);
      return;
    }
    const test = found.hits ? "McNemar's test" : "the Wilcoxon signed-rank test (Pratt)";
    const power = found.least_p >= 0.05 ? " So few patients that no test could have found a difference, whatever the maps." : "";
    const f = found.friedman ? ` Friedman: chi-squared ${found.friedman.chi_square.toFixed(1)}, ${p(found.friedman.p)}.` : "";
    const alpha = found.alpha === null ? "" : ` Krippendorff's alpha of their orders: ${found.alpha.toFixed(2)}.`;
    $("cd-caption").textContent = `${D.models[found.m]}, ${metric.short}: mean rank over ${found.patients} ${patients}, 1 the best. A vertical line joins explainers that ${test} does not tell apart (Holm-corrected over all pairs, 5 %).${power}${f}${alpha}`;
    const order = found.columns.map((_, i) => i).sort((a, b) => found.mean_ranks[a] - found.mean_ranks[b]);
    plain($("cd-table"), ["explainer", "mean rank", `${axisTitle(metric)}: less the best's`, "95 %", "Holm-corrected p", "beats the best control"], order.map((i) => {
      const d = found.differences[i], best = i === found.best;
      return [columnTitle(found.columns[i]), found.mean_ranks[i].toFixed(2), best ? "the best mean" : d.mean === null ? "failed" : shown(d.mean, metric), d.interval ? `${shown(d.interval[0], metric)} to ${shown(d.interval[1], metric)}` : "", best ? "" : p(d.p), d.beats === null ? "" : d.beats ? "yes" : "no"];
    }));
  };
  chart("cd-chart", () => {
    const found = cdChosen();
    if (!found) return { data: [], layout: {} };
    const order = found.columns.map((_, i) => i).sort((a, b) => found.mean_ranks[a] - found.mean_ranks[b]);
    const y = new Map(order.map((i, at) => [i, at]));
    const names = order.map((i) => label(columnTitle(found.columns[i])));
    // Lanes: a line goes where no other stands beside it.
    const lanes = [];
    const laneOf = (low, high) => {
      let lane = 0;
      while ((lanes[lane] ?? []).some(([a, b]) => low <= b && a <= high)) lane += 1;
      (lanes[lane] ??= []).push([low, high]);
      return lane;
    };
    const last = Math.max(...found.mean_ranks), step = (last - 1) * 0.03 || 0.1;
    const cliques = found.cliques.map((clique) => {
      const at = clique.map((i) => y.get(i));
      const x = last + step * (1 + laneOf(Math.min(...at), Math.max(...at)));
      return { x: [x, x], y: [Math.min(...at) - 0.2, Math.max(...at) + 0.2], mode: "lines", line: { width: 4, color: css("--soft") }, hovertemplate: `not told apart:<br>${clique.map((i) => label(columnTitle(found.columns[i]))).join("<br>")}<extra></extra>`, showlegend: false };
    });
    $("cd-chart").style.height = `${Math.max(260, 70 + 19 * order.length)}px`;
    const dots = {
      x: order.map((i) => found.mean_ranks[i]), y: order.map((_, at) => at), mode: "markers", showlegend: false,
      marker: { size: 9, color: order.map((i) => (D.columns[found.columns[i]].control ? css("--soft") : css("--accent"))), symbol: order.map((i) => (D.columns[found.columns[i]].control ? "circle-open" : "circle")) },
      text: names, hovertemplate: "%{text}: mean rank %{x:.2f}<extra></extra>",
    };
    return { data: [dots, ...cliques], layout: { xaxis: { title: { text: "mean rank (1 the best)" }, range: [Math.min(...found.mean_ranks) - step, last + step * (lanes.length + 1.5)] }, yaxis: { tickvals: order.map((_, at) => at), ticktext: names, autorange: "reversed", showgrid: true } } };
  });
  on(["cd-model", "cd-metric"], () => (cdText(), draw("cd-chart")));
  cdText();

  // Curves.
  const curved = [...new Set(D.curves.map((c) => c.k))];
  fill($("curve-model"), modelOptions);
  fill($("curve-metric"), metricOptions(curved));
  const curvesOf = () => D.curves.filter((c) => c.m === chosen("curve-model") && c.k === chosen("curve-metric"));
  const curveText = () => {
    const metric = D.metrics[chosen("curve-metric")];
    $("curve-caption").textContent = metric ? `${D.models[chosen("curve-model")]}, ${metric.title}: ${metric.level === "image" ? "the mean over images and folds" : "fold 0"}. Of more than eight explainers the eight of the best value and the controls are shown; a click on a name in the legend shows or hides one, a double click shows it alone.` : "No metric of this run has a curve.";
    const rows = curvesOf().map((c) => [columnTitle(c.c), ...[0, 0.25, 0.5, 0.75, 1].map((q) => c.points[Math.round(q * (c.points.length - 1))]).map(([x, v]) => `${v.toPrecision(3)} at ${x.toPrecision(3)}`)]);
    plain($("curve-table"), ["explainer", "first point", "quarter", "half", "three quarters", "last point"], rows);
  };
  chart("curve-chart", () => {
    const found = curvesOf();
    const metric = D.metrics[chosen("curve-metric")];
    const sign = metric?.better === "lower" ? -1 : 1;
    const rank = (c) => sign * (cell(c.m, c.c, c.k)?.mean ?? -Infinity * sign);
    const real = found.filter((c) => c.c >= 0 && !D.columns[c.c].control).sort((a, b) => rank(b) - rank(a));
    const leading = new Set(real.slice(0, 8));
    const data = found.map((c) => {
      const control = c.c === CHANCE || D.columns[c.c].control;
      // One point is a level: what a constant map comes to.
      const flat = c.points.length === 1;
      return { x: flat ? [0, 1] : c.points.map((q) => q[0]), y: flat ? [c.points[0][1], c.points[0][1]] : c.points.map((q) => q[1]), mode: "lines", name: label(columnTitle(c.c)), visible: real.length <= 8 || control || leading.has(c) ? true : "legendonly", line: { dash: c.c === CHANCE ? "dot" : control ? "dash" : "solid" } };
    });
    return { data, layout: { xaxis: { title: { text: found[0]?.x ?? "" }, ...(metric?.name === "froc" ? { range: [0, 8] } : {}) }, yaxis: { title: { text: found[0]?.y ?? "" } }, showlegend: true, legend: { font: { size: 11 } } } };
  });
  on(["curve-model", "curve-metric"], () => (curveText(), draw("curve-chart")));
  curveText();

  // Size and class.
  fill($("size-model"), modelOptions);
  fill($("size-metric"), metricOptions(imageMetrics));
  if (imageMetrics.includes(D.primary)) $("size-metric").value = D.primary;
  fill($("size-explainer"), D.columns.map((c, i) => [i, c.title]));
  const strataRows = () => {
    const m = chosen("size-model"), k = chosen("size-metric");
    return D.strata.filter((s) => s.m === m && s.k === k);
  };
  const sizeText = () => {
    const metric = D.metrics[chosen("size-metric")];
    const rows = strataRows();
    const names = [...new Set(rows.map((s) => s.name))];
    const columns = [...new Set(rows.map((s) => s.c))];
    const of = (c, name) => rows.find((s) => s.c === c && s.name === name);
    plain($("strata-table"), ["explainer", ...names], columns.map((c) => [columnTitle(c), ...names.map((n) => (of(c, n) ? `${shown(of(c, n).mean, metric)} (${of(c, n).images})` : ""))]));
    const one = metric && chosen("size-metric") === D.primary;
    const where = metric ? `${D.models[chosen("size-model")]}, ${columnTitle(chosen("size-explainer") ?? CHANCE)}: ` : "";
    $("size-caption").textContent = metric ? where + (one ? `${metric.short} of each image against the finding's share of the image, the mean over folds and trainings.` : `Mean ${metric.short} by tercile of the finding's size. The points of single images are kept for ${D.metrics[D.primary]?.short ?? "no metric"}.`) : "No metric of images of maps.";
  };
  chart("size-chart", () => {
    const m = chosen("size-model"), k = chosen("size-metric"), c = chosen("size-explainer");
    const metric = D.metrics[k];
    if (!metric) return { data: [], layout: {} };
    if (k === D.primary) {
      const values = D.values[m]?.[c] ?? [];
      const points = values.map((v, i) => [D.images[i].mask * 100, scaled(v, metric), label(D.images[i].id)]).filter((q) => q[1] !== null && q[0] > 0);
      return { data: [{ x: points.map((q) => q[0]), y: points.map((q) => q[1]), text: points.map((q) => q[2]), mode: "markers", marker: { size: 6, opacity: 0.7, color: css("--accent") }, hovertemplate: "%{text}<br>%{x:.2f} % of the image: %{y:.3f}<extra></extra>" }], layout: { xaxis: { type: "log", title: { text: "finding, % of the image" } }, yaxis: { title: { text: axisTitle(metric) } } } };
    }
    const rows = strataRows().filter((s) => s.c === c && s.by === "size");
    return { data: [{ type: "bar", x: rows.map((s) => s.name.split(",")[0]), y: rows.map((s) => scaled(s.mean, metric)), marker: { color: css("--accent") } }], layout: { yaxis: { title: { text: axisTitle(metric) } } } };
  });
  on(["size-model", "size-metric", "size-explainer"], () => (sizeText(), draw("size-chart")));
  sizeText();

  // Agreement.
  fill($("agree-model"), modelOptions);
  const agreement = () => {
    const m = chosen("agree-model"), kind = $("agree-kind").value;
    if (kind === "metrics") {
      const found = D.metric_agreement.find((a) => a.m === m);
      return found && { names: found.metrics, matrix: found.correlation, low: -1, what: "Spearman's correlation, over explainers, of their means by two metrics, each turned so that more is better" };
    }
    const found = D.map_agreement.find((a) => a.m === m);
    return found && { names: found.columns.map(columnTitle), matrix: found[kind], low: kind === "correlation" ? -1 : 0, what: kind === "correlation" ? `Spearman's correlation of the pixels of two explainers' maps (32 × 32), the mean over ${found.images} images a fold` : `What the highest tenth of the pixels of two maps have in common, the mean over ${found.images} images a fold; 0.1 by chance` };
  };
  const agreeText = () => {
    const found = agreement();
    $("agree-caption").textContent = found ? `${D.models[chosen("agree-model")]}. ${found.what}.` : "Nothing to compare.";
    plain($("agree-table"), found ? ["", ...found.names] : [""], found ? found.matrix.map((row, i) => [found.names[i], ...row.map((v) => (v === null ? "" : v.toFixed(2)))]) : []);
  };
  chart("agree-chart", () => {
    const found = agreement();
    if (!found) return { data: [], layout: {} };
    const n = found.names.length;
    $("agree-chart").style.height = `${Math.max(320, Math.min(1100, 140 + 17 * n))}px`;
    const data = [{ type: "heatmap", z: found.matrix, x: found.names.map(label), y: found.names.map(label), zmin: found.low, zmax: 1, colorscale: found.low < 0 ? [[0, "#b2182b"], [0.25, "#ef8a62"], [0.5, "#f7f7f7"], [0.75, "#67a9cf"], [1, "#2166ac"]] : "Viridis", hovertemplate: "%{y} and %{x}: %{z:.2f}<extra></extra>", xgap: 1, ygap: 1 }];
    return { data, layout: { xaxis: { tickangle: -60, type: "category", showgrid: false, tickfont: { size: 10 } }, yaxis: { autorange: "reversed", type: "category", showgrid: false, tickfont: { size: 10 } } } };
  });
  on(["agree-model", "agree-kind"], () => (agreeText(), draw("agree-chart")));
  agreeText();

  // Time against quality.
  fill($("time-model"), modelOptions);
  fill($("time-metric"), metricOptions(mapMetrics));
  if (D.primary !== null) $("time-metric").value = D.primary;
  const timeRows = () => {
    const m = chosen("time-model"), k = chosen("time-metric");
    if (k === null) return [];
    return D.columns.map((column, c) => ({ c, seconds: D.seconds[m]?.[c] ?? null, mean: cell(m, c, k)?.mean ?? null })).filter((r) => r.seconds !== null && r.mean !== null);
  };
  const timeText = () => {
    const metric = D.metrics[chosen("time-metric")];
    $("time-caption").textContent = metric ? `${D.models[chosen("time-model")]}: ${metric.short} (${metric.better} is better) against seconds an image of the explainer's own code and its runs of the model, beyond the run that all share; as measured in this run, fold and training by fold and training.` : "No metric of maps.";
    plain($("time-table"), ["explainer", "seconds an image", axisTitle(metric)], timeRows().map((r) => [columnTitle(r.c), r.seconds.toPrecision(3), shown(r.mean, metric)]));
  };
  chart("time-chart", () => {
    const rows = timeRows(), metric = D.metrics[chosen("time-metric")];
    const data = [{ x: rows.map((r) => Math.max(r.seconds, 1e-5)), y: rows.map((r) => scaled(r.mean, metric)), text: rows.map((r) => label(columnTitle(r.c))), mode: rows.length > 30 ? "markers" : "markers+text", textposition: "top center", textfont: { size: 10 }, marker: { size: 9, color: rows.map((r) => (D.columns[r.c].control ? css("--soft") : css("--accent"))) }, hovertemplate: "%{text}<br>%{x:.3g} s: %{y:.3f}<extra></extra>" }];
    return { data, layout: { xaxis: { type: "log", title: { text: "seconds an image" } }, yaxis: { title: { text: axisTitle(metric) } } } };
  });
  on(["time-model", "time-metric"], () => (timeText(), draw("time-chart")));
  timeText();

  // Gallery.
  const G = D.gallery;
  const loaded = new Map();
  const picture = (uri) => {
    if (!loaded.has(uri)) {
      loaded.set(uri, new Promise((resolve) => {
        const image = new Image();
        image.onload = () => resolve(image);
        image.onerror = () => resolve(null);
        image.src = uri;
      }));
    }
    return loaded.get(uri);
  };
  const state = { at: 0, order: [] };
  {
    const part = G.images.length < G.explained ? `${G.images.length} of ${G.explained} explained images, spread evenly` : `${G.images.length} explained images`;
    const folds = D.folds > 1 || D.seeds > 1 ? " The map is that of fold 0 and its first training; a value is the mean over all." : "";
    const size = D.served ? "at the model's size" : `in ${G.tile} x ${G.tile} pixels`;
    const metric = D.primary === null ? "" : ` Orders go by ${D.metrics[D.primary].short}.`;
    $("gallery-what").textContent = `${part}. A map is shown ${size}, by its own range; the finding is outlined.${folds}${metric}`;
  }
  fill($("g-model"), modelOptions);
  const shownColumns = () => D.columns.map((_, c) => c).filter((c) => G.maps[Number($("g-model").value)]?.some((s) => s && s.has[c] === "1"));
  const fillColumns = () => {
    const options = shownColumns().map((c) => [c, D.columns[c].title]);
    for (const [id, n] of [["g-left", 0], ["g-right", 1]]) {
      const before = $(id).value;
      fill($(id), options);
      $(id).value = options.some(([c]) => String(c) === before) ? before : String(options[Math.min(n, options.length - 1)]?.[0] ?? "");
    }
  };
  const valueOf = (m, c, g) => D.values[m]?.[c]?.[G.images[g]] ?? null;
  const better = D.primary !== null && D.metrics[D.primary]?.better === "lower" ? -1 : 1;
  const arrange = () => {
    const m = Number($("g-model").value), left = Number($("g-left").value), right = Number($("g-right").value), how = $("g-order").value;
    const key = (g) => {
      const a = valueOf(m, left, g), b = valueOf(m, right, g);
      if (how === "disagree") return a === null || b === null ? Infinity : -Math.abs(a - b);
      if (how === "name") return g;
      // What failed is the worst.
      if (a === null) return how === "best" ? Infinity : -Infinity;
      return how === "best" ? -a * better : a * better;
    };
    state.order = G.images.map((_, g) => [key(g), g]).sort(([a, i], [b, j]) => (a === b ? i - j : a - b)).map(([, g]) => g);
  };
  const strip = () => {
    $("g-strip").replaceChildren(...state.order.map((g, at) => {
      const image = el("img", { src: G.grey[g], alt: "", loading: "lazy", width: 56, height: 56 });
      const button = el("button", { type: "button", "aria-label": D.images[G.images[g]].id, "aria-current": at === state.at ? "true" : "false" }, image);
      button.addEventListener("click", () => show(at));
      return button;
    }));
  };
  const tables = G.colours;
  const outlineOf = (data, side, low, high) => {
    const inside = (x, y) => x >= 0 && y >= 0 && x < side && y < side && data[(y * side + x) * 4] >= low && data[(y * side + x) * 4] <= high;
    const edge = [];
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        if (!inside(x, y) && (inside(x - 1, y) || inside(x + 1, y) || inside(x, y - 1) || inside(x, y + 1))) edge.push([x, y]);
      }
    }
    return edge;
  };
  const offscreen = (w, h) => {
    const canvas = document.createElement("canvas");
    canvas.width = w;
    canvas.height = h;
    return [canvas, canvas.getContext("2d", { willReadFrequently: true })];
  };
  const paint = async (canvas, g, m, c, turn) => {
    const context = canvas.getContext("2d"), size = canvas.width;
    const served = D.served;
    const grey = await picture(served ? `image/${G.images[g]}.png?m=${m}` : G.grey[g]);
    const mask = await picture(G.mask[g]);
    let tile = null;
    if (c !== null) {
      const sheet = G.maps[m]?.[g];
      if (sheet && sheet.has[c] === "1") {
        if (served) {
          const map = await picture(`map/${m}/${c}/${G.images[g]}.png`);
          if (map) {
            const [from, pen] = offscreen(map.width, map.height);
            pen.drawImage(map, 0, 0);
            tile = pen.getImageData(0, 0, from.width, from.height);
          }
        } else {
          const image = await picture(sheet.uri), [, pen] = offscreen(G.tile, G.tile);
          if (image) {
            pen.drawImage(image, (c % G.across) * G.tile, Math.floor(c / G.across) * G.tile, G.tile, G.tile, 0, 0, G.tile, G.tile);
            tile = pen.getImageData(0, 0, G.tile, G.tile);
          }
        }
      }
    }
    if (turn !== state.turn) return;
    context.clearRect(0, 0, size, size);
    context.imageSmoothingEnabled = true;
    if (grey) context.drawImage(grey, 0, 0, size, size);
    if (tile) {
      const table = tables[$("g-colours").value], opacity = Number($("g-opacity").value) / 100;
      const [over, pen] = offscreen(tile.width, tile.height);
      for (let i = 0; i < tile.data.length; i += 4) {
        const v = tile.data[i];
        tile.data[i] = table[3 * v];
        tile.data[i + 1] = table[3 * v + 1];
        tile.data[i + 2] = table[3 * v + 2];
        tile.data[i + 3] = 255 * opacity;
      }
      pen.putImageData(tile, 0, 0);
      context.drawImage(over, 0, 0, size, size);
    }
    if (mask && $("g-outline").checked) {
      const [from, pen] = offscreen(mask.width, mask.height);
      pen.drawImage(mask, 0, 0);
      const data = pen.getImageData(0, 0, from.width, from.height).data, step = size / from.width;
      for (const [low, high, colour] of [[200, 255, "#40e0ff"], [100, 199, "#ff5fd2"]]) {
        context.fillStyle = colour;
        for (const [x, y] of outlineOf(data, from.width, low, high)) context.fillRect(x * step, y * step, Math.max(1, step * 0.6), Math.max(1, step * 0.6));
      }
    }
    canvas.dataset.painted = `${g} ${c ?? "image"} ${$("g-opacity").value} ${$("g-colours").value} ${$("g-outline").checked}`;
  };
  const show = (at) => {
    if (!state.order.length) {
      $("g-title").textContent = "No image of this run was explained.";
      return;
    }
    state.at = Math.min(Math.max(at, 0), state.order.length - 1);
    state.turn = (state.turn ?? 0) + 1;
    const g = state.order[state.at], image = D.images[G.images[g]], m = Number($("g-model").value);
    const size = image.mask === null ? "no mask" : `finding ${(image.mask * 100).toFixed(2)} % of the image`;
    const marker = image.shortcut ? ", with the planted shortcut" : "";
    $("g-title").textContent = `${state.at + 1} of ${state.order.length}: ${image.id}, ${image.class}, ${size}${marker}`;
    const metric = D.primary === null ? null : D.metrics[D.primary];
    const text = (c) => {
      const v = metric ? valueOf(m, c, g) : null;
      const there = G.maps[m]?.[g]?.has[c] === "1";
      return `${columnTitle(c)}${there ? (v === null ? "" : `: ${metric.short} ${shown(v, metric)}`) : ": no map, it failed or is not finite"}`;
    };
    const left = $("g-left").value === "" ? null : Number($("g-left").value), right = $("g-right").value === "" ? null : Number($("g-right").value);
    $("g-a-text").textContent = left === null ? "" : text(left);
    $("g-b-text").textContent = right === null ? "" : text(right);
    $("g-image").setAttribute("aria-label", `the image ${image.id}`);
    for (const [id, c] of [["g-image", null], ["g-a", left], ["g-b", right]]) {
      if (c !== null) $(id).setAttribute("aria-label", `${image.id} under ${text(c)}`);
      paint($(id), g, m, c, state.turn);
    }
    [...$("g-strip").children].forEach((b, i) => {
      b.setAttribute("aria-current", i === state.at ? "true" : "false");
      b.tabIndex = i === state.at ? 0 : -1;
      if (i === state.at) $("g-strip").scrollLeft = b.offsetLeft - $("g-strip").clientWidth / 2;
    });
  };
  const rearrange = () => {
    arrange();
    strip();
    show(0);
  };
  on(["g-model"], () => (fillColumns(), rearrange()));
  on(["g-left", "g-right", "g-order"], rearrange);
  $("g-opacity").addEventListener("input", () => show(state.at));
  on(["g-colours", "g-outline"], () => show(state.at));
  const turnRight = (by) => {
    const select = $("g-right");
    const next = Math.min(Math.max(select.selectedIndex + by, 0), select.options.length - 1);
    if (next !== select.selectedIndex) {
      select.selectedIndex = next;
      show(state.at);
    }
  };
  const opacity = (by) => {
    $("g-opacity").value = Number($("g-opacity").value) + by;
    show(state.at);
  };
  const keys = {
    ArrowRight: () => show(state.at + 1), ArrowLeft: () => show(state.at - 1), ArrowDown: () => turnRight(1), ArrowUp: () => turnRight(-1),
    Home: () => show(0), End: () => show(state.order.length - 1), "+": () => opacity(10), "=": () => opacity(10), "-": () => opacity(-10),
    o: () => (($("g-outline").checked = !$("g-outline").checked), show(state.at)),
  };
  $("gallery").addEventListener("keydown", (event) => {
    // Lists and sliders keep their own keys.
    if (["SELECT", "INPUT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const act = keys[event.key];
    if (act) {
      event.preventDefault();
      act();
    }
  });
  fillColumns();
  let begun = false;
  const begin = () => {
    if (begun) return;
    begun = true;
    rearrange();
  };
  const galleryWatcher = new IntersectionObserver((entries) => {
    if (entries.some((e) => e.isIntersecting)) {
      galleryWatcher.disconnect();
      begin();
    }
  }, { rootMargin: "300px" });
  galleryWatcher.observe($("gallery"));
  addEventListener("beforeprint", begin);

  // How it was made.
  const citation = (r) => [r.authors && `${r.authors}:`, `${r.title}${r.venue || r.year ? "," : ""}`, r.venue, r.year || "", r.id].filter((t) => t !== "").join(" ");
  const M = D.made;
  $("made-facts").append(el("dl", {}, ...M.facts.flatMap(([k, v]) => [el("dt", { text: k }), el("dd", { text: v })])));
  plain($("made-plugins"), ["what", "version", "file", "SHA-256, its first 16 digits"], M.plugins, true);
  plain($("made-metrics"), ["metric", "parameters", "family", "better", "range", "formula", "chance", "edge cases", "cost an image", "reference"], D.metrics.map((m) => [m.label, Object.entries(m.chosen).map(([k, v]) => `${k} = ${v}`).join(", ") || "defaults", m.family, m.better, m.range.map((v) => v ?? "open").join(" to "), m.formula, m.chance, m.edge_cases, m.cost, citation(m.reference)]), true);
  plain($("made-explainers"), ["explainer", "method", "family", "formula", "cost", "parameters", "reference"], M.explainers.map((e) => [e.label, `${e.name} ${e.version}: ${e.title}`, e.family, e.formula, e.cost, JSON.stringify(e.parameters), citation(e.reference)]), true);
  $("made-spec").textContent = M.spec;
  $("made-environment").textContent = M.environment;
  $("made-bibtex").textContent = M.bibtex;
  $("made-copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(M.bibtex);
      $("made-copy").textContent = "Copied";
    } catch {
      const range = document.createRange();
      range.selectNodeContents($("made-bibtex"));
      getSelection().removeAllRanges();
      getSelection().addRange(range);
      $("made-copy").textContent = "Selected: copy with your keys";
    }
  });
  document.documentElement.dataset.ready = "true";
})();
