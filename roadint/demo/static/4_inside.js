// Below the answers, for one of them: edited tokens, the next token, layers, blocks.

function inspect(column) {
  if (S.inspected === column.id) return closeInside();
  S.inspected = column.id;
  const box = $('inside');
  box.hidden = false;
  box.replaceChildren(make('p', { class: 'ri-hint' }, `looking inside ${expressionOf(column)} …`));
  send('look', [S.asked, expressionOf(column), column.id]);
  clearTimeout(S.lost);
  S.lost = setTimeout(() => looked({ column: column.id, error: 'Nothing was heard: close it, and look again.' }), PATIENCE);
  drawColumns();
  return box.scrollIntoView({ block: 'nearest', behavior: matchMedia('(prefers-reduced-motion: reduce)').matches ? 'auto' : 'smooth' });
}

function closeInside() {
  clearTimeout(S.lost);
  const button = $('answers').querySelector(`[data-id="${S.inspected}"] .ri-inspect`);
  const moves = $('inside').contains(document.activeElement);
  S.inspected = null;
  $('inside').hidden = true;
  drawColumns();
  if (moves) button?.focus();
}

function looked(message) {
  if (message.column !== S.inspected) return;
  clearTimeout(S.lost);
  const box = $('inside');
  if (message.error) {
    box.replaceChildren(make('div', { class: 'ri-alert', role: 'alert' }, message.error));
    return;
  }
  box.replaceChildren(
    make('div', { class: 'ri-line' },
      make('h2', {}, 'Inside ', make('code', {}, message.composition)),
      make('span', { class: 'ri-space' }),
      make('button', { type: 'button', class: 'ri-quiet', onclick: closeInside }, 'Close')),
    make('div', { class: 'ri-panels' },
      panel('tokens', 'The prompt', `${message.tokens.filter((token) => token.layers.length).length} of ${message.tokens.length} tokens are edited`, promptOf(message.tokens)),
      panel('moved', 'The first token of the answer', `${message.kl.toFixed(3)} nats from the base model`, movedOf(message.moved)),
      panel('lens', 'What each layer would say next', 'the logit lens: likeliest token, shaded by its probability', lensOf(message.lens)),
      ...message.sites.map((site, index) => panel(`blocks-${index}`, site.title, 'every block: its angle (bars) and its scale (dots)', blocksOf(site)))));
}

function panel(name, title, hint, content) {
  return make('section', { class: `ri-panel ri-${name.split('-')[0]}`, id: name, 'aria-label': title },
    make('h3', {}, title), make('p', { class: 'ri-hint' }, hint), content);
}

const visible = (text) => text.replace(/\n/g, '↵').replace(/^ | $/g, '␣') || '∅';

function promptOf(tokens) {
  return make('p', { class: 'ri-prompt' }, ...tokens.map((token) => (token.layers.length
    ? make('span', { class: 'ri-edited', title: `edited after layer ${token.layers.join(', ')}` }, token.text.replace(/\n/g, '↵'))
    : make('span', {}, token.text.replace(/\n/g, '↵\n')))));
}

function movedOf(moved) {
  const bar = (kind, share) => make('span', { class: `ri-bar-${kind}`, style: `width: ${(100 * share).toFixed(1)}%` });
  const most = Math.max(...moved.map((token) => Math.max(token.before, token.after)), 1e-6);
  return make('table', { class: 'ri-bars' },
    make('thead', {}, make('tr', {}, ...['token', 'base model, with it', 'base', 'with'].map(
      (text) => make('th', { scope: 'col' }, text)))),
    make('tbody', {}, ...moved.map((token) => make('tr', {},
      make('th', { scope: 'row' }, make('code', { dir: 'auto' }, visible(token.text))),
      make('td', { class: 'ri-two' }, bar('before', token.before / most), bar('after', token.after / most)),
      make('td', {}, percent(token.before)), make('td', {}, percent(token.after))))));
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function lensOf({ first, rows }) {
  const cells = (tokens) => tokens.map(([text, share], index) => {
    const differs = index < rows[0].tokens.length && text !== rows[0].tokens[index][0];
    return make('td', {
      class: differs ? 'ri-differs' : '', style: `--share: ${share.toFixed(3)}`, title: percent(share),
    }, make('code', { dir: 'auto' }, visible(text)));
  });
  return make('div', { class: 'ri-scroll', tabindex: '0', role: 'group', 'aria-label': 'Layers' },
    make('table', { class: 'ri-heat' },
      make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, 'layer'),
        ...rows[0].tokens.map((_, index) => make('th', { scope: 'col' }, String(first + index))))),
      make('tbody', {}, ...rows.map((row) => make('tr', {},
        make('th', { scope: 'row' }, row.name), ...cells(row.tokens))))));
}

// Bars of angles and dots of scales; the block under the pointer, or by arrow keys, is told.
function blocksOf(site) {
  const [wide, high, middle] = [960, 110, 55];
  const blocks = site.parts.flatMap((part) => part.blocks.map((block, index) => ({
    block, name: part.name, angles: part.angles[index], scales: part.scales[index],
  }))).sort((one, other) => one.block - other.block);
  const step = wide / Math.max(site.count, 1);
  const angle = Math.max(...blocks.flatMap((each) => each.angles.map(Math.abs)), 1e-3);
  const scale = Math.max(...blocks.flatMap((each) => each.scales.map((value) => Math.abs(Math.log(value || 1)))), 1e-3);
  const marks = blocks.flatMap((each) => each.angles.flatMap((value, entry) => {
    const [part, x] = [step / each.angles.length, each.block * step + entry * (step / each.angles.length)];
    const [size, up] = [(Math.abs(value) / angle) * 48, value > 0];
    const dot = middle - (Math.log(each.scales[entry] || 1) / scale) * 48;
    const fill = S.colours[each.name] || 'currentColor';
    return [
      make('rect', { x, y: up ? middle - size : middle, width: Math.max(part * 0.8, 0.5), height: Math.max(size, 0.3), fill }),
      make('rect', { x: x + part * 0.2, y: dot - 1, width: 2, height: 2, class: 'ri-dot' }),
    ];
  }));
  const cursor = make('line', { y1: 0, y2: high, class: 'ri-cursor', visibility: 'hidden' });
  const told = make('p', { class: 'ri-told' },
    `angles up to ${degrees(angle)}, scales ${Math.exp(-scale).toFixed(2)} to ${Math.exp(scale).toFixed(2)}; point at a block`);
  let at = -1;
  const point = (index) => {
    at = Math.min(Math.max(index, 0), blocks.length - 1);
    const each = blocks[at];
    cursor.setAttribute('x1', (each.block + 0.5) * step);
    cursor.setAttribute('x2', (each.block + 0.5) * step);
    cursor.setAttribute('visibility', 'visible');
    const pair = site.raw ? `, dimensions ${2 * each.block} and ${2 * each.block + 1}` : '';
    told.textContent = `block ${each.block}${pair}, ${each.name}: `
      + `θ ${each.angles.map(degrees).join(', ')}; α ${each.scales.map((value) => value.toFixed(3)).join(', ')}`;
  };
  const svg = make('svg', {
    viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: 'none', tabindex: '0', role: 'img', class: 'ri-blocks',
    'aria-label': `${site.title}: angle and scale of ${blocks.length} blocks; arrow keys tell one after the other`,
    onpointermove: (event) => {
      const { left, width } = svg.getBoundingClientRect();
      const target = ((event.clientX - left) / width) * site.count - 0.5;
      point(blocks.reduce((best, each, index) => (
        Math.abs(each.block - target) < Math.abs(blocks[best].block - target) ? index : best), 0));
    },
    onkeydown: (event) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      point(at + move);
      announce(told.textContent);
    },
  }, make('line', { x1: 0, x2: wide, y1: middle, y2: middle, class: 'ri-zero' }), ...marks, cursor);
  const legend = make('p', { class: 'ri-legend' }, ...site.parts.map((part) => make('span', { style: `--colour: ${S.colours[part.name] || 'currentColor'}` }, part.label)));
  return make('div', {}, svg, legend, told);
}

const degrees = (angle) => `${((angle * 180) / Math.PI).toFixed(1)}°`;
