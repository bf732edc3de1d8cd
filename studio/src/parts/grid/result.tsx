// A grid as the backend has it: its pictures in a table, labelled.

import { useState } from 'preact/hooks';
import { api } from '../../server/api';
import { save } from '../../device/files';
import { labelOf, valueLabels, type Axis } from '../../drafting/axes';
import { drawGrid } from '../../drafting/gridPicture';
import type { Grid } from '../../drafting/grids';
import { number, t } from '../../i18n';
import { Thumb } from '../pictures/picture';
import { Button } from '../ui';
import { go } from '../../state/route';
import { contentOf, keep, tellProblem } from '../../state/store';
import { isFinal } from '../../server/types';

export function GridResult({ grid }: { grid: Grid }) {
  const [isBusy, setBusy] = useState(false);
  const ids = grid.cells.flat().filter((id) => id !== null);
  const done = ids.filter((id) => contentOf(id).value?.images.length).length;
  const open = ids.filter((id) => {
    const content = contentOf(id).value;
    return content !== null && !isFinal(content.status);
  });
  const cells = grid.x.values.length * grid.y.values.length;
  const stop = async () => {
    try {
      await api.cancelBatch(grid.id);
      for (const id of open) api.content(id).then(keep, () => {});
    } catch (error) {
      tellProblem(error);
    }
  };
  const repeat = async () => {
    try {
      go(`grid/${(await api.repeatBatch(grid.id)).batch_id}`);
    } catch (error) {
      tellProblem(error);
    }
  };
  const download = async () => {
    setBusy(true);
    try {
      save(await drawGrid(grid), `grid-${grid.id}.png`);
    } catch (error) {
      tellProblem(error);
    } finally {
      setBusy(false);
    }
  };
  return (
    <section class="stack">
      <div class="row between grid-head">
        <p class="prompt-text" title={grid.prompt ?? undefined}>
          {grid.prompt}
        </p>
        <div class="row">
          <span class="muted num" role="status">
            {t('grid.done', { done: number(done), all: number(cells) })}
          </span>
          {open.length > 0 && (
            <Button icon="close" onClick={() => void stop()}>
              {t('grid.stop')}
            </Button>
          )}
          <Button icon="download" disabled={!done || isBusy} onClick={() => void download()}>
            {t('grid.download')}
          </Button>
          {open.length === 0 && (
            <Button icon="again" onClick={() => void repeat()}>
              {t('batch.repeat')}
            </Button>
          )}
        </div>
      </div>
      <Table grid={grid} />
    </section>
  );
}

/** A value's label, cut where it is long; whole in its title. */
function Label({ axis, label, place }: { axis: Axis; label: string; place: number }) {
  const whole = axis.parameter === 'prompt' ? String(axis.values[place]) : label;
  return (
    <span class="xy-label" title={whole}>
      {label}
    </span>
  );
}

function Table({ grid }: { grid: Grid }) {
  const across = valueLabels(grid.x, grid.y.parameter === 'lora');
  const down = valueLabels(grid.y, grid.x.parameter === 'lora');
  return (
    <div class="xy-scroll" tabIndex={0} role="region" aria-label={t('nav.grid')}>
      <table class="xy">
        <thead>
          <tr>
            <td>
              <span class="label">{labelOf(grid.y)} ↓</span>
            </td>
            <td colSpan={across.length}>
              <span class="label">{labelOf(grid.x)} →</span>
            </td>
          </tr>
          <tr>
            <td />
            {across.map((label, place) => (
              <th scope="col" key={place}>
                <Label axis={grid.x} label={label} place={place} />
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {down.map((label, row) => (
            <tr key={row}>
              <th scope="row">
                <Label axis={grid.y} label={label} place={row} />
              </th>
              {across.map((_, column) => {
                const id = grid.cells[row]?.[column];
                return <td key={column}>{id ? <Thumb id={id} /> : null}</td>;
              })}
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
